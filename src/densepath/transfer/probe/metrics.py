"""Scores of a classifier with 95% intervals: accuracy, balanced accuracy, macro AUC."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

METRICS = ("accuracy", "balanced_accuracy", "macro_auc")
_REPEATS = 1000
_AT_ONCE = 2**24  # weights that are kept at a time
_LEVEL = 95.0  # percent

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Score:
    """A score and its 95% interval, in percent.

    Args:
        value: the score of all images.
        low, high: the interval.
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.1f} ({self.low:.1f} to {self.high:.1f})"


def evaluate(
    truth: Integers, chances: Floats, folds: Integers, patients: Integers, seed: int, repeats: int = _REPEATS
) -> dict[str, Score]:
    """Score the predictions for all test images.

    The intervals are percentiles of a bootstrap over patients: whole patients are drawn with replacement, 1000 times,
    as images of a patient are not independent. The classifiers are not fitted again, so the intervals contain the
    chance of the test patients, but not that of the training.

    Args:
        truth: (N,) the class of each image.
        chances: (N, K) the probabilities of the classes; the largest is the prediction.
        folds: (N,) the fold that an image was tested in.
        patients: (N,) the number of its patient, from 0.
        seed: seed of the bootstrap.
        repeats: samples of the bootstrap.

    Returns:
        The score for each of METRICS, in percent.
    """
    whole = _scores(np.ones((1, len(truth))), truth, chances, folds)
    drawn = [_scores(w, truth, chances, folds) for w in _resampled(patients, seed, repeats)]
    scores = {}
    for name in METRICS:
        sample = np.concatenate([part[name] for part in drawn])
        tail = (100 - _LEVEL) / 2
        low, high = np.nanpercentile(sample, [tail, 100 - tail])
        scores[name] = Score(*(100 * float(x) for x in (whole[name][0], low, high)))
    return scores


def _resampled(patients: Integers, seed: int, repeats: int) -> Iterator[Floats]:
    """How often each image is in each sample, (B, N), in parts."""
    count = int(patients.max()) + 1
    generator = np.random.default_rng(seed)
    step = max(1, _AT_ONCE // len(patients))
    for first in range(0, repeats, step):
        times = generator.multinomial(count, np.full(count, 1 / count), size=min(step, repeats - first))
        yield times[:, patients].astype(np.float64)


def _scores(weights: Floats, truth: Integers, chances: Floats, folds: Integers) -> dict[str, Floats]:
    """The scores of weighted images, (B,) each, from 0 to 1."""
    correct = (chances.argmax(1) == truth).astype(np.float64)
    members = truth[:, None] == np.arange(chances.shape[1])  # (N, K)
    with np.errstate(invalid="ignore", divide="ignore"):
        recalls = (weights @ (members * correct[:, None])) / (weights @ members)
        accuracy = (weights @ correct) / weights.sum(1)
    areas = [macro for macro in (_auc(weights, members[:, k], chances[:, k], folds) for k in range(members.shape[1]))]
    return {
        "accuracy": accuracy,
        "balanced_accuracy": _mean_of_known(recalls),
        "macro_auc": _mean_of_known(np.stack(areas, axis=1)),
    }


def _auc(weights: Floats, positive: npt.NDArray[np.bool_], chance: Floats, folds: Integers) -> Floats:
    """The share of pairs of a positive and a negative image of one fold in which the positive one has the higher
    probability, (B,); equal ones count half. Images of different folds are not compared: each fold has a classifier of
    its own. NaN without a pair.
    """
    won, pairs = np.zeros(len(weights)), np.zeros(len(weights))
    for fold in np.unique(folds):
        own = np.flatnonzero(folds == fold)
        own = own[chance[own].argsort(kind="stable")]
        starts = np.flatnonzero(np.append(True, np.diff(chance[own]) > 0))  # of images of equal probability
        yes = np.add.reduceat(weights[:, own] * positive[own], starts, axis=1)
        no = np.add.reduceat(weights[:, own] * ~positive[own], starts, axis=1)
        won += (yes * (no.cumsum(1) - no / 2)).sum(1)
        pairs += yes.sum(1) * no.sum(1)
    with np.errstate(invalid="ignore"):
        return won / pairs


def _mean_of_known(values: Floats) -> Floats:
    """The mean over the classes (B, K) that a sample has."""
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        means: Floats = np.where(known, values, 0).sum(1) / known.sum(1)
    return means
