"""The features of new slides for a trained model of slides: made as those of its training were, or found in files."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from glob import has_magic
from pathlib import Path
from typing import Any

from densepath.annotations.patients import patients_of
from densepath.core.closing import step_of_another
from densepath.core.errors import UserError, counted
from densepath.core.streams import say
from densepath.sources.listing import walk
from densepath.sources.tiles.tile import tile
from densepath.sources.tiles.tile_files import is_tile_folder, overlap_of, read_slide_rows, read_tile_folder
from densepath.training.hardware import Hardware, Precision
from densepath.transfer.embed.embed_slides import EmbedOptions, embed_slides
from densepath.transfer.embed.files_of_slides import features_name, features_path, notes_of
from densepath.transfer.mil.extractor_record import ExtractorRecord, alike
from densepath.transfer.mil.feature_files import SUFFIXES, find_features, slide_name
from densepath.transfer.mil.slide_table import patient_of_tcga
from densepath.transfer.slides.slide_list import check_tiles, refuse_options
from densepath.transfer.slides.slide_work import last_problem

_ROUNDING = 1e-3  # of an option

_WHOLE = "1/1"  # every process waits until all slides are tiled


@dataclass(frozen=True)
class NewSlide:
    """A slide that is asked about.

    Args:
        name: of the slide.
        patient: whose it is; the slide's own name if that is unknown.
        is_known: whether the patient is known.
        file: of its features; None if there is none.
        problem: why there is none; "" if there is one.
    """

    name: str
    patient: str
    is_known: bool
    file: Path | None
    problem: str = ""


@dataclass(frozen=True, eq=False)
class SlideOptions:
    """How new slides become features.

    Args:
        weights: instead of those of the record; None for those.
        mpp: µm per pixel of the tiles, where the record has none.
        tile: side of the tiles in pixels, where the record has none.
        mpp_table, default_mpp, exclude: as for ``densepath embed``.
        shard: this process's share of the slides.
        hardware, precision: where to compute, and what the user asked for.
    """

    weights: str | None
    mpp: float | None
    tile: int | None
    mpp_table: str | Path | None
    default_mpp: float | None
    exclude: Sequence[str]
    shard: str | None
    hardware: Hardware
    precision: Precision


def slides_in_files(data: str | Path) -> list[NewSlide] | None:
    """The slides whose features are in a folder or file; None if data are slides, or tiles of slides.

    Raises:
        UserError: a slide has two files, or data name files of features in another way.
    """
    path = Path(data)
    if path.is_file() and path.suffix.lower() in SUFFIXES:
        found = {slide_name(path.name): path}
    elif path.suffix.lower() in SUFFIXES and not path.is_dir():
        raise UserError(f"{data} is not a file; give a folder of files of features, or one of them")
    elif not path.exists() and not has_magic(str(data)):
        raise UserError(f"{data} does not exist; give slides, a folder of densepath tile, or files of features")
    elif is_tile_folder(data) or not path.is_dir() or not walk(data, SUFFIXES):
        return None
    else:
        found = find_features(data)
    paths = {str(file): slide for file in found.values() if (slide := notes_of(file).get("slide_path"))}
    of_slides = _patients_next_to(list(paths.values()))
    owners = {file: of_slides[slide] for file, slide in paths.items() if slide in of_slides}
    owners |= patients_of(data, [str(file) for file in found.values()])
    say(f"densepath: the features of {counted(len(found), 'slide')} are taken from {data}")
    return [NewSlide(name, *_patient(name, owners.get(str(file))), file) for name, file in found.items()]


def _patients_next_to(slides: Sequence[str]) -> dict[str, str]:
    """The patients of slides that a ``manifest.csv`` lists: in the folder of all, its parent, or below it."""
    folders = {os.path.dirname(os.path.abspath(path)) for path in slides}
    return patients_of(os.path.commonpath(folders), slides) if folders else {}


def completed(record: ExtractorRecord, data: str | Path, options: SlideOptions) -> ExtractorRecord:
    """How new slides become features: what is recorded, completed by what the user says.

    Args:
        record: how the features of the training were made.
        data: slides, or a folder of ``densepath tile``.
        options: what the user says.

    Raises:
        UserError: the record does not say enough, or differs from the options or the tiles.
    """
    if (weights := options.weights or record.weights) is None:
        raise UserError(
            "the run does not record what made its features (other software did); name the weights of their network "
            "with --weights, or give a folder of features as --data"
        )
    mpp, side = _agreed("mpp", record.mpp, options.mpp), _agreed("window", record.tile, options.tile)
    if is_tile_folder(data):
        given: dict[str, Any] = {"mpp_table": options.mpp_table, "default_mpp": options.default_mpp}
        given["exclude"] = options.exclude or None
        refuse_options("slides that are not tiled", given)
        tiling = read_tile_folder(data)[0]
        check_tiles(
            data,
            (
                ("µm per pixel", tiling.mpp, mpp),
                ("pixels per side", tiling.size, side),
                ("pixels of overlap", overlap_of(data), record.overlap if record.mpp else None),
            ),
            alike,
        )
    elif mpp is None or side is None:
        raise UserError(
            "the run does not record the tiles of its features; give their µm per pixel with --mpp, and their side in "
            "pixels with --window"
        )
    return replace(record, weights=weights, mpp=mpp, tile=side)


def embed_new_slides(data: str | Path, out: Path, record: ExtractorRecord, options: SlideOptions) -> list[NewSlide]:
    """Tile slides and compute their features as those of the training; what is done before stays.

    Args:
        data: slides, or a folder of ``densepath tile``.
        out: the folder for ``tiles`` and ``features``.
        record: of :func:`completed`.
        options: what the user says.

    Returns:
        The slides; empty if other processes still work on some.

    Raises:
        UserError: the weights are others than those of the record, or no slide can be read.
    """
    tiles = Path(data)
    if not is_tile_folder(data):
        tiles = out / "tiles"
        given = {name: getattr(options, name) for name in ("mpp_table", "default_mpp", "exclude")}
        same: dict[str, Any] = {"mpp": record.mpp, "size": record.tile, "overlap": record.overlap or 0}
        with step_of_another():
            tile(data=data, out=tiles, shard=_WHOLE, **same, **given)
    network = {name: getattr(record, name) for name in ("backbone", "stage", "pool", "seed", "size")}
    assert record.weights is not None
    made: dict[str, Any] = {}

    def check(notes: Mapping[str, Any]) -> None:
        record.check(notes)
        made.update(notes)

    how = EmbedOptions(record.weights, network, "float16", 64, options.hardware, options.precision, check)
    features = out / "features"
    with step_of_another():
        counts = embed_slides(
            tiles,
            features,
            how,
            exclude=(),
            mpp=None,
            tile_size=None,
            mpp_table=None,
            default_mpp=None,
            shard=options.shard,
        )
    if counts["left"]:
        return []
    name = features_name(record.weights, made["backbone"])
    rows = read_slide_rows(tiles)
    paths = [row["path"] for row in rows]
    owners = patients_of(data, paths) if tiles != Path(data) else _patients_next_to(paths)
    return [_slide(row, features_path(features, name, row["slide"]), features, owners.get(row["path"])) for row in rows]


def _slide(row: dict[str, str], file: Path, features: Path, owner: str | None) -> NewSlide:
    name, problem = row["slide"], row.get("problem", "")
    if not int(row["tiles"] or 0):
        problem = problem or "no tissue was found"
    elif file.is_file():
        return NewSlide(name, *_patient(name, owner), file)
    else:
        problem = last_problem(features, name) or f"it has no features; see {features / 'embed.log'}"
    return NewSlide(name, *_patient(name, owner), None, problem)


def _patient(name: str, owner: str | None) -> tuple[str, bool]:
    """Whose a slide is, and whether that is known: else it is a case of its own."""
    known = owner or patient_of_tcga(name)
    return known or name, bool(known)


def _agreed(option: str, recorded: Any, given: Any) -> Any:
    """What the run records, with which an option agrees up to its rounding, or what only the option says."""
    known = recorded is not None and given is not None
    if known and not (alike(recorded, given) and math.isclose(recorded, given, rel_tol=_ROUNDING)):
        raise UserError(f"--{option} is {given:g}, but the run was trained on tiles with {recorded:g}; leave it out")
    return given if recorded is None else recorded
