"""A trained classifier on the tiles of slides: a table and heat maps for each slide, by any number of processes."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from densepath.core.closing import say_end, step_of_another
from densepath.core.csv_files import write_rows
from densepath.core.errors import UserError, counted
from densepath.core.locks import shared_work
from densepath.core.output_names import unused_name
from densepath.core.result import Result
from densepath.core.shared_work import LOCKS, Shard
from densepath.core.stopwatch import Stopwatch
from densepath.core.streams import say
from densepath.core.system import with_progress
from densepath.sources.corrupt import CorruptImage, lasting
from densepath.sources.slides.resolution import MppTable, same_mpp
from densepath.sources.tiles.slide_tiles import SlideTiles
from densepath.sources.tiles.tile import tile
from densepath.sources.tiles.tile_files import is_tile_folder, read_tile_folder
from densepath.training.hardware import Hardware
from densepath.transfer.classify.classifier import ClassifierNotes, Readout, probabilities
from densepath.transfer.classify.label_scores import rows_of
from densepath.transfer.classify.training import AT_ONCE, Stored
from densepath.transfer.embed.encode import batches_of, collect, encode
from densepath.transfer.predict_records import check_images
from densepath.transfer.slides.heat_map import files_of_map, write_heat_map
from densepath.transfer.slides.slide_list import (
    ListedSlide,
    check_tiles,
    list_of_slides,
    names_of_slides,
    refuse_options,
)
from densepath.transfer.slides.slide_work import UNFINISHED, SlideWork, as_corrupt, without_tiles

SLIDES = "slides.csv"
_ALL = "1/1"  # every process waits until all slides are tiled


@dataclass(frozen=True)
class OnSlides:
    """How slides become images.

    Args:
        mpp: µm per pixel of their tiles; None for that of the training images.
        mpp_table, default_mpp: as for ``densepath predict``.
        shard: as for ``densepath predict``.
    """

    mpp: float | None = None
    mpp_table: str | Path | None = None
    default_mpp: float | None = None
    shard: str | None = None


def tile_mpp(notes: ClassifierNotes, data: str | Path, options: OnSlides) -> float | None:
    """The µm per pixel at which slides are tiled; None if they were tiled before.

    Raises:
        UserError: it is unknown, the classifier does not take slides, or the tiles are unlike its training images.
    """
    if notes.spec.channels != 3 or notes.spec.image_dtype is not np.uint8:
        raise UserError("the classifier was trained on grey or 16-bit images, and slides are RGB; train another one")
    if is_tile_folder(data):
        refuse_options("slides that are not tiled", {"mpp": options.mpp})
        tiling = read_tile_folder(data)[0]
        known = ("µm per pixel", tiling.mpp, notes.mpp), ("pixels per side", tiling.size, notes.image_size or None)
        check_tiles(data, known, same_mpp)
        return None
    mpp = notes.mpp if options.mpp is None else options.mpp
    if mpp is None:
        raise UserError("the classifier does not know the µm per pixel of its training images; give them: --mpp")
    return mpp


def predict_tiles(
    readout: Readout,
    notes: ClassifierNotes,
    data: str | Path,
    out: Path,
    options: OnSlides,
    exclude: Sequence[str],
    shard: Shard | None,
    hardware: Hardware,
    watch: Stopwatch,
    on_begin: Callable[[], None],
) -> Result:
    """Write the probabilities of the tiles of slides, which are tiled first if they are not.

    ``tiles/NAME.csv`` has a line for each tile, ``heat_maps/NAME_LABEL`` the probabilities of a label on the slide, and
    ``slides.csv`` the means of each slide. ``on_begin`` is called when nothing refuses the work any more.

    Raises:
        UserError: as for :func:`tile_mpp`, or no slide can be read.
    """
    tiles, table, mpp = Path(data), MppTable(options.mpp_table, options.default_mpp), tile_mpp(notes, data, options)
    check_images(out, partial(names_of_slides, data, exclude), "slide")
    if mpp is not None:
        tiles, side = out / "tiles_of_slides", notes.image_size or min(notes.view_size)
        given: dict[str, Any] = {"mpp_table": options.mpp_table, "default_mpp": options.default_mpp}
        with step_of_another():
            tile(data=data, out=tiles, mpp=mpp, size=side, exclude=exclude, shard=_ALL, **given)
        exclude, table = (), MppTable()
    slides = {slide.name: slide for slide in list_of_slides(tiles, exclude, table)}
    maps = heat_map_paths(out, list(slides), notes.labels)

    def files(name: str) -> list[Path]:
        if name in slides:
            own = {maps[name, label] for label in notes.labels}
        else:
            own = {*heat_map_paths(out, [name], notes.labels).values()} - {*maps.values()}
        return [_table(out, name), *chain.from_iterable(map(files_of_map, own))]

    def identity(slide: ListedSlide) -> list[Any]:
        own = [(maps[slide.name, label], out / "heat_maps" / _plain(slide.name, label)) for label in notes.labels]
        return [*slide.identity(), *(path.name for path, plain in own if path != plain)]

    identities = {name: identity(slide) for name, slide in slides.items()}
    paths = {name: slide.path for name, slide in slides.items()}
    shared = SlideWork(
        out,
        identities,
        files,
        lambda name: _table(out, name).exists(),
        (out / SLIDES,),
        paths=paths,
        is_former=without_tiles(tiles, out),
    )
    drawn = _drawn(notes)

    def is_done(name: str) -> bool:
        made = [_table(out, name), *chain.from_iterable(files_of_map(maps[name, label]) for label in drawn)]
        return shared.succeeded(name) and all(path.exists() for path in made)

    def work(name: str) -> dict[str, Any]:
        return _predict_slide(readout, notes, slides[name], out, hardware, maps)

    shared.do(is_done, work, shard, on_begin=on_begin)
    with shared_work(out / LOCKS / "tables", "tables"):
        found = shared.found()
        columns = ["slide", "path", "tiles", "damaged", *(f"mean p {name}" for name in notes.labels), "problem"]
        rows = [{"slide": n, **found.get(n, {"problem": UNFINISHED}), "path": s.path} for n, s in slides.items()]
        write_rows(out / SLIDES, columns, rows)
    counts, line = shared.summary(found)
    say(f"densepath: {counted(counts['slides'] - counts['damaged'] - counts['left'], 'slide')}{line}")
    if not counts["left"]:
        say_end(watch, "", {"slides": out / SLIDES, "tiles": out / "tiles", "heat maps": out / "heat_maps"})
    pictures = sorted((out / "heat_maps").rglob("*.png")) if (out / "heat_maps").exists() else []
    named = {str(path.relative_to(out / "heat_maps").with_suffix("")): path for path in pictures}
    return Result(out, counts, {"slides": out / SLIDES, **named})


def heat_map_paths(out: Path, slides: Sequence[str], labels: Sequence[str]) -> dict[tuple[str, str], Path]:
    """The heat map of each slide and label, without suffixes: no two share one."""
    names: dict[str, tuple[str, str]] = {}
    for slide in slides:
        for label in labels:
            names[unused_name(_plain(slide, label), names)] = slide, label
    return {own: out / "heat_maps" / name for name, own in names.items()}


def _plain(slide: str, label: str) -> str:
    part = re.sub(r"[^\w.-]+", "_", label)
    return f"{slide}_{part}"


def _predict_slide(
    readout: Readout,
    notes: ClassifierNotes,
    slide: ListedSlide,
    out: Path,
    hardware: Hardware,
    maps: Mapping[tuple[str, str], Path],
) -> dict[str, Any]:
    """Write the files of a slide, and return what is known of it. Raises CorruptImage."""
    tiling = slide.tiling
    assert tiling is not None
    with as_corrupt(slide):
        opened = slide.open()
    batches = batches_of(range(len(tiling)), AT_ONCE)
    parts = encode(readout, _Tiles(SlideTiles([tiling])), batches, hardware.device, hardware.precision == "bf16-mixed")
    positions, logits, damaged, _ = collect(with_progress(parts, len(batches), f"batches of {slide.name}"))
    if not positions:
        raise CorruptImage(
            slide.path, f"none of {counted(len(tiling), 'tile')} can be read ({damaged[0] if damaged else ''})"
        )
    chances = probabilities(logits, notes.exclusive)
    corners, boxes = tiling.corners[positions], tiling.boxes_um(positions)
    answers = rows_of(notes.labels, notes.exclusive, chances)
    rows = [
        {"x": int(x), "y": int(y), "x_um": f"{left:.2f}", "y_um": f"{top:.2f}", **row}
        for (x, y), (top, left), row in zip(corners, boxes[:, :2], answers, strict=True)
    ]
    (path := _table(out, slide.name)).parent.mkdir(parents=True, exist_ok=True)
    write_rows(path, list(rows[0]), rows)
    for name in _drawn(notes):
        heat_map, own = maps[slide.name, name], chances[:, notes.labels.index(name)]
        heat_map.parent.mkdir(parents=True, exist_ok=True)
        write_heat_map(heat_map, opened, boxes, own, label=f"probability of {name}", limits=(0.0, 1.0))
    means = {f"mean p {name}": float(mean) for name, mean in zip(notes.labels, chances.mean(0), strict=True)}
    return {"path": slide.path, "tiles": len(tiling), "damaged": len(damaged), **means}


class _Tiles(Stored):
    """The tiles of a slide as a network takes them."""

    def read(self, position: int) -> npt.NDArray[Any] | CorruptImage:
        """A tile (size, size, C), or why it is damaged. Raises CorruptImage if a disk or a network has failed."""
        found = super().read(position)
        return lasting(found) if isinstance(found, CorruptImage) else found


def _drawn(notes: ClassifierNotes) -> Sequence[str]:
    """The labels that have a heat map: of two classes only the second, as the map of the other is its inverse."""
    return notes.labels[1:] if notes.exclusive and len(notes.labels) == 2 else notes.labels


def _table(out: Path, slide: str) -> Path:
    return out / "tiles" / f"{slide}.csv"
