"""Predicted classes and labels of images compared with true ones: ``densepath score`` for classifiers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Literal

import numpy as np

from densepath.annotations.classes import FOLDERS
from densepath.annotations.label_table import open_label_table, table_columns
from densepath.core.columns import PATIENT_COLUMNS, SPLIT, plain_head
from densepath.core.csv_files import read_rows
from densepath.core.errors import UserError, counted, first_few, refuse
from densepath.core.files import require_new_folder
from densepath.core.output_names import alike_names, names_below
from densepath.core.records import recorded
from densepath.core.streams import say, say_left_out
from densepath.sources.names import AllNames
from densepath.sources.open import find_source
from densepath.sources.pixel_source import PixelSource
from densepath.transfer.classify.closing import close_outcome
from densepath.transfer.classify.cohort import Pool, read_pool, same_labels
from densepath.transfer.classify.config import ClassifyConfig, Uncertain
from densepath.transfer.classify.predict_classes import PREDICTIONS, SEVERAL
from densepath.transfer.classify.results import Outcome
from densepath.transfer.classify.targets import LABEL, number_of
from densepath.transfer.probe.folds import parts_of
from densepath.transfer.probe.labelled import warn_of_unknown_patients
from densepath.transfer.probe.metrics import Floats
from densepath.transfer.slides.slide_list import refuse_options

_CHANCE = "p "  # before the label in the name of a column
_RUN = "run"  # the column of the trainings in a table of classify
_SUM = 1e-3  # how far the probabilities of classes may be from 1 together: they are rounded


@dataclass(frozen=True)
class TrueLabels:
    """Where true labels and patients are found, as for :class:`ClassifyConfig`.

    Args:
        labels: "folders" or a table.
        target, targets, separator, uncertain, patient, patient_regex: as there.
    """

    labels: str | Path
    target: str | None = None
    targets: tuple[str, ...] = ()
    separator: str | None = None
    uncertain: Uncertain = "ignore"
    patient: str | None = None
    patient_regex: str | None = None


@dataclass(frozen=True, eq=False)
class _Predicted:
    """What a classifier has written.

    Args:
        path: the table.
        names: (N,) of the images.
        labels: T labels.
        chances: (N, T) their probabilities.
        exclusive: whether an image has exactly one of the labels.
        runs: (N,) the training of each line, of a table of ``classify``.
    """

    path: Path
    names: list[str]
    labels: tuple[str, ...]
    chances: Floats
    exclusive: bool
    runs: list[str]


def holds_classes(predictions: str | Path) -> bool:
    """Whether predictions are those of a classifier: the folder of ``predict`` with its table, or this table."""
    path = _table(predictions)
    return path.suffix.lower() == ".csv" and path.is_file()


def score_classes(
    data: str | Path,
    predictions: str | Path,
    how: TrueLabels,
    out: str | Path | None,
    split: Literal["train", "test"] = "test",
) -> tuple[dict[str, float], dict[str, Path]]:
    """Accuracy, AUC, average precision and F1 of the predictions of a classifier, with intervals by patient.

    Args:
        data: the images.
        predictions: the folder of ``densepath predict`` with a classifier, or its predictions.csv; or those of
            ``classify``, whose trainings are scored as there.
        how: where the true labels are found.
        out: a new folder for the files that ``classify`` writes for its test images; None for none.
        split: which images are scored, if the labels name splits.

    Returns:
        The scores, and the files.

    Raises:
        UserError: labels or predictions are missing or invalid, or no image has both.
    """
    if out is not None and Path(out).suffix.lower() == ".json":
        raise UserError(f"out is {out}; name a new folder, as the scores of a classifier are several files")
    folder = None if out is None else require_new_folder(out, "the scores", sources=[data])
    found = _read(_table(predictions))
    images = find_source(data)
    pool = _of_split(_true(images, data, found, how), how, split)
    by_run = {run: lines for run in dict.fromkeys(found.runs) if (lines := _lines_of(run, pool, found))}
    run_names, matched = list(by_run), list(by_run.values())
    kept = np.array([k for lines in matched for k in lines], np.int64)
    bare = [name for k, name in enumerate(pool.names) if not any(k in lines for lines in matched)]
    say_left_out(bare, "image", f"without a prediction in {found.path}")
    known = alike_names(found.names, names_below(AllNames(images), data))
    strangers = [name for name, place in zip(found.names, known, strict=True) if not place]
    say_left_out(strangers, "image", f"of {found.path} that {data} lacks")
    if not len(kept):
        raise UserError(f"{found.path} has none of the images of {data}; predict and score the same images")
    owners, targets = [pool.owners[k] for k in kept], pool.targets.take(kept)
    warn_of_unknown_patients(pool.by_patient)
    columns = [found.labels.index(name) for name in targets.names]
    chances = found.chances[[line for lines in matched for line in lines.values()]][:, columns]
    runs = np.repeat(np.arange(len(matched)), [len(lines) for lines in matched])
    tested = Outcome([pool.names[k] for k in kept], owners, targets, chances, runs, run_names)
    say(f"densepath: {pool.take(np.unique(kept)).describe()}")
    notes = {"data": str(data), "true_labels": str(how.labels), "predictions": str(predictions)}
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    return close_outcome(tested, notes, bool(pool.by_patient), 0, folder)


def _table(predictions: str | Path) -> Path:
    path = Path(predictions)
    return path / PREDICTIONS if path.is_dir() else path


def _read(path: Path) -> _Predicted:
    remedy = "give the folder of densepath predict with a classifier"
    rows = read_rows(path, remedy, ["image"])
    labels = tuple(name.removeprefix(_CHANCE) for name in (rows[0] if rows else ()) if name.startswith(_CHANCE))
    if not labels:
        raise UserError(f"{path} has no image, or no column of probabilities ({_CHANCE}NAME); {remedy}")
    try:
        chances = np.array([[float(row[_CHANCE + name]) for name in labels] for row in rows])
    except (TypeError, ValueError):
        chances = np.full(1, np.nan)
    if not ((chances >= 0) & (chances <= 1)).all():
        raise UserError(f"{path} has probabilities that are not numbers from 0 to 1; predict again")
    runs = [row.get(_RUN, "predictions") for row in rows]
    return _Predicted(
        path, [row["image"] for row in rows], labels, chances, _is_exclusive(path, rows[0], chances), runs
    )


def _is_exclusive(path: Path, row: Mapping[str, str], chances: Floats) -> bool:
    """Whether an image has one label: as recorded, or in an older folder, if the probabilities sum to 1."""
    if _RUN in row:
        return LABEL in row
    try:
        several = recorded(path.parent).get(SEVERAL)
    except UserError:  # a table of its own
        several = None
    return not several if isinstance(several, bool) else bool((abs(chances.sum(1) - 1) < _SUM).all())


def _lines_of(run: str, pool: Pool, found: _Predicted) -> dict[int, int]:
    """The line of a training's predictions for each image that has one, by its position in the pool."""
    lines = [k for k, own in enumerate(found.runs) if own == run]
    places = alike_names(pool.names, [found.names[k] for k in lines])
    twice = [name for name, place in zip(pool.names, places, strict=True) if len(place) > 1]
    refuse(twice, f"images that may be several of {found.path}", "predict and score the same images")
    return {k: lines[place[0]] for k, place in enumerate(places) if place}


def _of_split(pool: Pool, how: TrueLabels, split: Literal["train", "test"]) -> Pool:
    """The images of a split, if the labels name splits; of the test otherwise all."""
    if not pool.splits:
        refuse_options("labels with splits", {"split": None if split == "test" else split})
        return pool
    own = parts_of(pool.splits, "images") == (0 if split == "train" else 2)
    if not own.any():
        raise UserError(f"no image is of the split {split} in {how.labels}; choose the other one with --split")
    if others := int((~own).sum()):
        say(
            f"densepath: only the {counted(int(own.sum()), 'image')} of the split {split}, not {others} of other splits"
        )
    return pool.take(np.flatnonzero(own))


def _true(images: PixelSource, data: str | Path, found: _Predicted, how: TrueLabels) -> Pool:
    """The images with their true labels, named and ordered as those of the classifier."""
    table = None if str(how.labels) == FOLDERS else str(how.labels)
    if not found.exclusive and not (how.targets or how.separator):
        heads = [] if table is None else table_columns(table)
        how = replace(how, targets=tuple(name for name in found.labels if plain_head(name) in heads), target=None)
        if not how.targets:
            raise UserError(
                f"{found.path} has several labels of an image ({first_few(found.labels)}); name the table's columns of "
                "them with --targets, or the column of lists with --target and --separator"
            )
        _say_unpaired(str(how.labels), found.labels, how.targets)
    config = ClassifyConfig(data=data, out=found.path, unmatched="skip", **vars(how))
    pool = read_pool(config, images, data, how.labels, whole=False)
    # Of labels with columns of their own, others than these are unknown.
    names: Sequence[str] = [n for n in found.labels if n in how.targets] if how.targets else found.labels
    return same_labels(names, pool, 0.0 if how.separator else np.nan, whose=f"{found.path} lacks")


def _say_unpaired(table: str, labels: Sequence[str], scored: Sequence[str]) -> None:
    """Say which labels of a classifier have no column in a table, and which columns of 0 and 1 are not its labels."""
    if lacking := [name for name in labels if name not in scored]:
        say(f"densepath: left out of the scores, as {table} has no column of this name: {first_few(lacking)}")
    with open_label_table(table) as reader:
        columns, mark = list(zip_longest(*reader, fillvalue="")), reader.delimiter
    known = {SPLIT, *PATIENT_COLUMNS, *map(plain_head, labels)}
    filled = [(head, {text for text in texts if text.strip()}) for head, *texts in columns]
    binary = [head for head, texts in filled if texts and all(number_of(text, mark) is not None for text in texts)]
    if others := [head for head in binary if plain_head(head) not in known]:
        say(f"densepath: columns of 0 and 1 in {table} that are not labels of the classifier: {first_few(others)}")
