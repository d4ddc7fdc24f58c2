"""Scores of a classifier with 95% intervals: accuracy, balanced accuracy, F1, AUC, average precision."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from densepath.core.errors import UserError

METRICS = ("accuracy", "balanced_accuracy", "macro_auc")
ALL_METRICS = ("macro_auc", "macro_ap", "accuracy", "balanced_accuracy", "macro_f1")
_REPEATS = 1000
_AT_ONCE = 2**24  # weights that are kept at a time
_LEVEL = 95.0  # percent
_TINY = 1e-300

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
    truth: Integers,
    chances: Floats,
    folds: Integers,
    patients: Integers,
    seed: int,
    repeats: int = _REPEATS,
    *,
    predicted: Integers | None = None,
    metrics: Sequence[str] = METRICS,
) -> dict[str, Score]:
    """Score the predictions for all test images.

    The intervals are percentiles of a bootstrap over patients: whole patients are drawn with replacement, 1000 times,
    as images of a patient are not independent. The classifiers are not fitted again, so the intervals contain the
    chance of the test patients, but not that of the training.

    Args:
        truth: (N,) the class of each image.
        chances: (N, K) the probabilities of the classes.
        folds: (N,) the fold that an image was tested in.
        patients: (N,) the number of its patient, from 0.
        seed: seed of the bootstrap.
        repeats: samples of the bootstrap.
        predicted: (N,) predicted classes; by default those of the largest probability.
        metrics: of ALL_METRICS, and "auc_k" and "ap_k" for class k against the rest.

    Returns:
        The score for each of the metrics, in percent.

    Raises:
        UserError: a probability is NaN or Inf.
    """
    check_finite(chances)
    found = intervals(lambda w: measure(w, truth, chances, folds, predicted), patients, seed, repeats)
    return {name: found[name] for name in metrics}


def check_finite(answers: Floats) -> None:
    """Check predictions (N, K): one that is NaN would count as the highest probability of every class.

    Raises:
        UserError: some are NaN or Inf.
    """
    if wrong := int((~np.isfinite(answers)).any(axis=1).sum()):
        raise UserError(
            f"the predictions of {wrong} of {len(answers)} test cases are NaN or Inf; check their features or pixels, "
            "or train again with a lower learning rate"
        )


def intervals(
    measured: Callable[[Floats], Mapping[str, Floats]], patients: Integers, seed: int, repeats: int = _REPEATS
) -> dict[str, Score]:
    """Scores with the percentiles of a bootstrap over patients.

    Args:
        measured: weights (B, N) of the images -> metric -> (B,) values from 0 to 1.
        patients, seed, repeats: as for :func:`evaluate`.
    """
    whole = measured(np.ones((1, len(patients))))
    drawn = [measured(weights) for weights in resampled(patients, seed, repeats)]
    return {name: score_of(value[0], np.concatenate([part[name] for part in drawn])) for name, value in whole.items()}


def named(metric: str, names: Sequence[str]) -> str:
    """The name of a metric with the name of a class instead of its number, e.g. auc_tumor for auc_1."""
    what, _, number = metric.rpartition("_")
    return f"{what}_{names[int(number)]}" if number.isdigit() else metric


def score_of(value: float, sample: Floats) -> Score:
    """A score with the percentiles of its bootstrap, from shares of 1."""
    tail = (100 - _LEVEL) / 2
    known = sample[~np.isnan(sample)]
    low, high = np.percentile(known, [tail, 100 - tail]) if len(known) else (np.nan, np.nan)
    return Score(*(100 * float(x) for x in (value, low, high)))


def resampled(patients: Integers, seed: int, repeats: int = _REPEATS) -> Iterator[Floats]:
    """How often each image is in each sample, (B, N), in parts."""
    count = int(patients.max()) + 1
    generator = np.random.default_rng(seed)
    step = max(1, _AT_ONCE // len(patients))
    for first in range(0, repeats, step):
        times = generator.multinomial(count, np.full(count, 1 / count), size=min(step, repeats - first))
        yield times[:, patients].astype(np.float64)


def measure(
    weights: Floats, truth: Integers, chances: Floats, folds: Integers, predicted: Integers | None = None
) -> dict[str, Floats]:
    """All metrics of weighted images, (B,) each, from 0 to 1; a metric that is undefined is NaN.

    Args:
        weights: (B, N).
        truth, chances, folds, predicted: as for :func:`evaluate`.
    """
    count = chances.shape[1]
    chosen = chances.argmax(1) if predicted is None else predicted
    correct = (chosen == truth).astype(np.float64)
    members = truth[:, None] == np.arange(count)  # (N, K)
    with np.errstate(invalid="ignore", divide="ignore"):
        positive, hits = weights @ members, weights @ (members * correct[:, None])
        accuracy = (weights @ correct) / weights.sum(1)
        # A class without images and without predictions has no F1, as a class without images has no recall.
        f1 = 2 * hits / (positive + weights @ (chosen[:, None] == np.arange(count)))
    areas, precisions = zip(*(ranked(weights, members[:, k], chances[:, k], folds) for k in range(count)), strict=True)
    return {
        "accuracy": accuracy,
        "balanced_accuracy": mean_of_known(divide(hits, positive)),
        "macro_f1": mean_of_known(f1),
        "macro_auc": mean_of_known(np.stack(areas, axis=1)),
        "macro_ap": mean_of_known(np.stack(precisions, axis=1)),
        **{f"auc_{k}": area for k, area in enumerate(areas)},
        **{f"ap_{k}": precision for k, precision in enumerate(precisions)},
    }


def ranked(weights: Floats, positive: npt.NDArray[np.bool_], chance: Floats, folds: Integers) -> tuple[Floats, Floats]:
    """Area under the ROC curve, and average precision, (B,) each; NaN without a positive or a negative image.

    The area is the share of pairs of a positive and a negative image of one fold in which the positive one has the
    higher probability; equal ones count half. Average precision is the mean, over positive images, of the share of
    positives among the images of its fold with at least its probability; a fold without negative images is left out, as
    every order of it has an average precision of 1. Images of different folds are not compared: each fold has a
    classifier of its own.
    """
    won, pairs, precision, found = (np.zeros(len(weights)) for _ in range(4))
    for fold in np.unique(folds):
        own = np.flatnonzero(folds == fold)
        own = own[chance[own].argsort(kind="stable")]
        starts = np.flatnonzero(np.append(True, np.diff(chance[own]) > 0))  # of images of equal probability
        yes = np.add.reduceat(weights[:, own] * positive[own], starts, axis=1)
        no = np.add.reduceat(weights[:, own] * ~positive[own], starts, axis=1)
        won += (yes * (no.cumsum(1) - no / 2)).sum(1)
        pairs += yes.sum(1) * no.sum(1)
        true, false = (part[:, ::-1].cumsum(1)[:, ::-1] for part in (yes, no))  # with at least this probability
        mixed = no.any(1)
        precision += mixed * (yes * true / np.maximum(true + false, _TINY)).sum(1)
        found += mixed * yes.sum(1)
    return divide(won, pairs), divide(precision, found)


def divide(part: Floats, whole: Floats) -> Floats:
    """Shares; NaN of nothing."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return part / whole


def mean_of_known(values: Floats) -> Floats:
    """The mean over the classes (B, K) that a sample has."""
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        means: Floats = np.where(known, values, 0).sum(1) / known.sum(1)
    return means
