"""Predicted classes of pixels and voxels compared with true ones: ``densepath score`` for segmenters."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from densepath.annotations.classes import FOLDERS
from densepath.annotations.labels import LABEL_SUFFIXES, read_labels
from densepath.annotations.patients import check_spelling
from densepath.core.csv_files import write_rows
from densepath.core.errors import UserError, first_few, refuse
from densepath.core.files import atomic_write
from densepath.core.json_files import load_json
from densepath.core.output_names import names_below
from densepath.core.scores import SCALE, without_nan
from densepath.core.streams import say
from densepath.core.system import with_progress
from densepath.sources.corrupt import CorruptImage
from densepath.sources.listing import list_images, walk
from densepath.sources.volumes.read import SUFFIXES, on_voxels_of, read_volume
from densepath.sources.volumes.volume import sheared_steps, spacing_of, whole_labels
from densepath.transfer.probe.labelled import Labels, Listed, owners_of, warn_of_unknown_patients
from densepath.transfer.segment.case_scores import Steps, score_case
from densepath.transfer.segment.legend import Legend, legend_of
from densepath.transfer.segment.matching import match_labels
from densepath.transfer.segment.predict_masks import LABELS, LEGEND
from densepath.transfer.segment.results import Outcome, describe, failures, rows_of, score

Values = npt.NDArray[Any]


@dataclass(frozen=True)
class _Pair:
    """Two label maps of one image.

    Args:
        name: of the image.
        read: predicted and true values, and the spacing as for
            :func:`~densepath.transfer.segment.case_scores.hausdorff95`. Raises CorruptImage or UserError.
    """

    name: str
    read: Callable[[], tuple[Values, Values, Steps]]


REGION_COLUMNS = ("image", "region", "dice", "iou")  # the first ones of the table of all images


def is_semantic(predictions: str | Path, classes: Sequence[str]) -> bool:
    """Whether predictions are classes of pixels: those of a segmenter, or label maps whose classes are named."""
    return bool(classes) or (Path(predictions) / LEGEND).is_file()


def score_masks(
    data: str | Path,
    predictions: str | Path,
    classes: Sequence[str],
    out: Path | None,
    patient: str | None = None,
    patient_regex: str | None = None,
) -> tuple[dict[str, float], dict[str, Path]]:
    """Dice, IoU and HD95 of label maps, with 95% intervals by patient.

    Args:
        data: a folder, list or glob of true label maps: images, or NIfTI and MetaImage volumes.
        predictions: the folder of ``densepath predict`` with a segmenter, or of label maps.
        classes: as for ``densepath segment``; default: those of the segmenter.
        out: a JSON file for the scores; None for none.
        patient: the column with the patients, of a manifest.csv in the folder of ``data`` or in its parent, which lists
            the label maps; default: patient, case or subject of any.
        patient_regex: finds the patient in an image's name.

    Returns:
        The scores, and the files that were written.

    Raises:
        UserError: images or patients are missing, images are of another size or have values that no class has.
    """
    folder = Path(predictions)
    legend = legend_of(classes) if classes else _legend_in(folder / LEGEND)
    maps = folder / LABELS if (folder / LABELS).is_dir() else folder
    volumes = bool(walk(maps, SUFFIXES)) if maps.is_dir() else False
    pairs = list(_volume_pairs(data, maps) if volumes else _image_pairs(data, maps))
    names = [pair.name for pair in pairs]
    owners, by_patient = owners_of(names, Listed(names), Labels(FOLDERS, patient, patient_regex), None, data)
    check_spelling(owners, names, data, warn=True)  # patients only make intervals
    warn_of_unknown_patients(by_patient)
    rows, wrong = [], []
    for pair in with_progress(pairs, len(pairs), "comparing"):
        try:
            found, true, spacing = pair.read()
        except CorruptImage as error:
            raise UserError(f"{error}; replace the file") from error
        unknown = legend.unknown(np.unique(np.concatenate((np.unique(found), np.unique(true)))).tolist())
        wrong += [f"{pair.name} ({', '.join(map(str, unknown))})"] * bool(unknown)
        rows.append(score_case(legend.classes_of(found), legend.classes_of(true), legend, spacing))
    refuse(wrong, "label maps with values that no class has", "name all classes with --classes")
    runs = np.zeros(len(names), np.int64)
    tested = Outcome(names, owners, np.stack(rows), legend.scored, runs, ["predictions"], "mm" if volumes else "px")
    scores = score(tested, 0)
    failed = failures(tested.columns, tested.regions)
    say(f"densepath: {describe(scores, failed, tested.unit, several=False)}")
    values = {name: each.value for name, each in scores.all.items()}
    values |= {f"{what}_{name}": float(each[what]) for name, each in failed.items() for what in ("missed", "false")}
    if out is None:
        return values, {}
    with atomic_write(out) as part:
        record = {**SCALE, "distances": tested.unit, **without_nan(values), "failures": failed, "images": len(names)}
        record |= {"patients": len(set(owners)) if by_patient else None}
        part.write_text(json.dumps(record, indent=2) + "\n")
    table = rows_of(tested)
    columns = [column for column in table[0] if column not in ("patient", "run")]
    write_rows(out.with_suffix(".csv"), columns, [{c: row[c] for c in columns} for row in table])
    return values, {"scores": out, "images": out.with_suffix(".csv")}


def _legend_in(path: Path) -> Legend:
    try:
        return Legend.from_record(load_json(path, "the classes of a prediction"))
    except (ValueError, TypeError, LookupError) as error:
        raise UserError(f"{path} is damaged; predict again, or name the classes with --classes") from error


def _image_pairs(data: str | Path, maps: Path) -> Iterator[_Pair]:
    if (Path(data) / "annotations").is_dir():
        raise UserError(f"{data} is a data set of outlined objects, and classes of pixels need a folder of label maps")
    found = [str(path) for path in list_images(maps, suffixes=LABEL_SUFFIXES, kinds="label map", runs=True)]
    matched = match_labels(found, data, maps, otherwise="predict only images that have one")
    for name, path, true in zip(names_below(found, maps), found, matched, strict=True):

        def read(path: str = path, true: Path = true, name: str = name) -> tuple[Values, Values, Steps]:
            one, other = read_labels(Path(path)), read_labels(true)
            if one.shape != other.shape:
                sizes = [f"{each.shape[1]} x {each.shape[0]}" for each in (one, other)]
                raise UserError(f"{name} has {sizes[0]} px, and its true map {sizes[1]}; predict and compare one image")
            return one, other, (1.0, 1.0)

        yield _Pair(name, read)


def _volume_pairs(data: str | Path, maps: Path) -> Iterator[_Pair]:
    found, true = _named(maps), _named(data)
    lacking = sorted(found.keys() ^ true.keys())
    if lacking:
        raise UserError(f"{maps} and {data} do not have the same volumes: {first_few(lacking)}; compare the same ones")
    for name, path in found.items():

        def read(path: str = path, other: str = true[name]) -> tuple[Values, Values, Steps]:
            one, two = read_volume(path), read_volume(other)
            one = on_voxels_of(path, one, other, two)
            values = [whole_labels(f"labels of {p}", v.channels, 32) for p, v in ((path, one), (other, two))]
            steps = sheared_steps(one.affine)
            apart = spacing_of(one.affine) if steps is None else steps
            return values[0].astype(np.int32), values[1].astype(np.int32), apart

        yield _Pair(name, read)


def _named(folder: str | Path) -> dict[str, str]:
    """The files of volumes by their names without suffix."""
    paths = [str(path) for path in list_images(folder, suffixes=SUFFIXES, kinds="volume (NIfTI, MetaImage)")]
    below = names_below(paths, folder)
    stems = [name[: -max(len(end) for end in SUFFIXES if name.lower().endswith(end))] for name in below]
    twice = [name for name, stem in zip(below, stems, strict=True) if stems.count(stem) > 1]
    refuse(twice, f"volumes of {folder} that differ only in the ends of their names", "keep one of them")
    return dict(zip(stems, paths, strict=True))
