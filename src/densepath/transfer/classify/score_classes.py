"""Predicted classes and labels of images compared with true ones: ``densepath score`` for classifiers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from densepath.annotations.classes import FOLDERS
from densepath.annotations.label_table import table_columns
from densepath.core.csv_files import plain_head, read_rows
from densepath.core.errors import UserError, counted, first_few, refuse
from densepath.core.files import require_new_folder
from densepath.core.output_names import alike_names, names_below
from densepath.core.streams import say
from densepath.sources.names import AllNames
from densepath.sources.open import find_source
from densepath.sources.pixel_source import PixelSource
from densepath.transfer.classify.closing import close_outcome
from densepath.transfer.classify.cohort import Pool, read_pool, same_labels
from densepath.transfer.classify.config import ClassifyConfig, Uncertain
from densepath.transfer.classify.predict_classes import PREDICTIONS
from densepath.transfer.classify.results import Outcome
from densepath.transfer.probe.metrics import Floats

_CHANCE = "p "  # before the label in the name of a column
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
    """What a classifier has written: names of images, and the probabilities (N, T) of its labels."""

    path: Path
    names: list[str]
    labels: tuple[str, ...]
    chances: Floats

    @property
    def exclusive(self) -> bool:
        """Whether an image has exactly one of the labels: their probabilities sum to 1."""
        return bool((abs(self.chances.sum(1) - 1) < _SUM).all())


def holds_classes(predictions: str | Path) -> bool:
    """Whether predictions are those of a classifier: the folder of ``predict`` with its table, or this table."""
    path = _table(predictions)
    return path.suffix.lower() == ".csv" and path.is_file()


def score_classes(
    data: str | Path, predictions: str | Path, how: TrueLabels, out: str | Path | None
) -> tuple[dict[str, float], dict[str, Path]]:
    """Accuracy, AUC, average precision and F1 of the predictions of a classifier, with intervals by patient.

    Args:
        data: the images.
        predictions: the folder of ``densepath predict`` with a classifier, or its predictions.csv.
        how: where the true labels are found.
        out: a new folder for the files that ``classify`` writes for its test images; None for none.

    Returns:
        The scores, and the files.

    Raises:
        UserError: labels or predictions are missing or invalid, or no image has both.
    """
    folder = None if out is None else require_new_folder(out, "the scores", sources=[data])
    found = _read(_table(predictions))
    images = find_source(data)
    pool = _true(images, data, found, how)
    places = alike_names(pool.names, found.names)
    twice = [name for name, place in zip(pool.names, places, strict=True) if len(place) > 1]
    refuse(twice, f"images that may be several of {found.path}", "predict and score the same images")
    kept = np.array([k for k, place in enumerate(places) if place], np.int64)
    _say_left([pool.names[k] for k, place in enumerate(places) if not place], f"without a prediction in {found.path}")
    known = alike_names(found.names, names_below(AllNames(images), data))
    strangers = [name for name, place in zip(found.names, known, strict=True) if not place]
    _say_left(strangers, f"of {found.path} that {data} lacks")
    if not len(kept):
        raise UserError(f"{found.path} has none of the images of {data}; predict and score the same images")
    owners, targets = [pool.owners[k] for k in kept], pool.targets.take(kept)
    if not pool.by_patient:
        say(
            "densepath: warning: the patients are unknown, so intervals count each image as one; name them with "
            "--patient or --patient_regex"
        )
    columns = [found.labels.index(name) for name in targets.names]
    chances = found.chances[[places[k][0] for k in kept]][:, columns]
    names = [pool.names[k] for k in kept]
    tested = Outcome(names, owners, targets, chances, np.zeros(len(kept), np.int64), ["predictions"])
    say(f"densepath: {replace(pool, names=names, owners=owners, targets=targets).describe()}")
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
    return _Predicted(path, [row["image"] for row in rows], labels, chances)


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
    config = ClassifyConfig(data=data, out=found.path, unmatched="skip", **vars(how))
    pool = read_pool(config, images, data, how.labels, whole=False)
    # Of labels with columns of their own, others than these are unknown.
    names: Sequence[str] = [n for n in found.labels if n in how.targets] if how.targets else found.labels
    return same_labels(names, pool, 0.0 if how.separator else np.nan, whose=f"{found.path} lacks")


def _say_left(names: Sequence[str], why: str) -> None:
    if names:
        say(f"densepath: left out: {counted(len(names), 'image')} {why}: {first_few(names)}")
