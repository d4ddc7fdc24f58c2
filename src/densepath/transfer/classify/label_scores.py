"""Scores of classes and of labels, some of which may be unknown, with 95% intervals by patient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from densepath.core.scores import answer_text
from densepath.transfer.classify.targets import Targets
from densepath.transfer.probe.metrics import (
    Floats,
    Integers,
    Score,
    check_finite,
    intervals,
    mean_of_known,
    measure,
    named,
    ranked,
)

SHOWN = ("accuracy", "balanced_accuracy", "macro_auc", "macro_f1")
_CUT = 0.5  # the probability from which a label counts as predicted


def score_targets(targets: Targets, chances: Floats, runs: Integers, patients: Integers, seed: int) -> dict[str, Score]:
    """The scores of predictions, in percent, with intervals by a bootstrap over patients.

    Accuracy, balanced accuracy, macro F1, macro AUC and macro average precision, and "auc_NAME" and "ap_NAME" for each
    class against the rest, or each label. Images of different trainings are not ranked against each other.

    Args:
        targets: of M predictions.
        chances: (M, T) probabilities.
        runs: (M,) the training that each is of.
        patients: (M,) patients, from 0.
        seed: seed of the bootstrap.

    Raises:
        UserError: a probability is NaN or Inf.
    """
    check_finite(chances)
    found = intervals(lambda weights: _measure(weights, targets, chances, runs), patients, seed)
    return {named(name, targets.names): score for name, score in found.items()}


def scores_of_run(targets: Targets, chances: Floats) -> dict[str, float]:
    """The scores of one training, in percent; NaN where one is undefined."""
    one = np.ones((1, len(targets)))
    found = _measure(one, targets, chances, np.zeros(len(targets), np.int64))
    return {named(name, targets.names): 100 * float(value[0]) for name, value in found.items()}


def macro_auc(targets: Targets, chances: Floats) -> float:
    """The mean AUC of the classes or labels in percent; 0 if none is defined."""
    matrix, one = targets.matrix(), np.ones((1, len(targets)))
    known = [~np.isnan(column) for column in matrix.T]
    areas = [
        ranked(one[:, k], matrix[k, t] > 0, chances[k, t], np.zeros(int(k.sum()), np.int64))[0] if k.any() else [np.nan]
        for t, k in enumerate(known)
    ]
    area = float(mean_of_known(np.array(areas).reshape(1, -1))[0])
    return 100 * area if np.isfinite(area) else 0.0


def predicted(targets: Targets, chances: Floats) -> Integers:
    """(M, 1) the class of the largest probability, or (M, T) 0 and 1."""
    return chances.argmax(1)[:, None] if targets.exclusive else (chances >= _CUT).astype(np.int64)


def rows_of(labels: Sequence[str], exclusive: bool, chances: npt.NDArray[Any]) -> list[dict[str, str]]:
    """What is written for each image: the predicted class or labels, and the probabilities (M, T).

    The written probabilities decide, so that scores of the table count the same predictions.
    """
    rows = []
    for row in chances:
        texts = dict(zip(labels, map(answer_text, row), strict=True))
        known = {name: float(text) for name, text in texts.items()}
        said = [max(known, key=known.__getitem__)] if exclusive else [n for n, p in known.items() if p >= _CUT]
        rows.append({"predicted": "|".join(said), **{f"p {name}": text for name, text in texts.items()}})
    return rows


def _measure(weights: Floats, targets: Targets, chances: Floats, runs: Integers) -> dict[str, Floats]:
    """All metrics of weighted predictions (B, M), (B,) each, from 0 to 1."""
    if targets.exclusive:
        return measure(weights, targets.classes, chances, runs)
    columns: dict[str, list[Floats]] = {}
    correct, total = np.zeros(len(weights)), np.zeros(len(weights))
    for t in range(len(targets.names)):
        known = np.flatnonzero(~np.isnan(targets.values[:, t]))
        own, yes, chance = weights[:, known], targets.values[known, t] > 0, chances[known, t]
        said = chance >= _CUT
        hit, miss, false, rest = (own @ part for part in (yes & said, yes & ~said, ~yes & said, ~yes & ~said))
        with np.errstate(invalid="ignore", divide="ignore"):
            columns.setdefault("balanced_accuracy", []).append((hit / (hit + miss) + rest / (rest + false)) / 2)
            columns.setdefault("macro_f1", []).append(2 * hit / (2 * hit + miss + false))
        area, precision = ranked(own, yes, chance, runs[known])
        columns.setdefault("macro_auc", []).append(area)
        columns.setdefault("macro_ap", []).append(precision)
        correct, total = correct + hit + rest, total + own.sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        found = {"accuracy": correct / total}
    found |= {name: mean_of_known(np.stack(each, axis=1)) for name, each in columns.items()}
    for what in ("auc", "ap"):
        found |= {f"{what}_{t}": each for t, each in enumerate(columns[f"macro_{what}"])}
    return found
