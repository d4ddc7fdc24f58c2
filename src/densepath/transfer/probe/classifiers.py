"""Classifiers of frozen features: k nearest neighbors, and logistic regression."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from densepath.transfer.probe.metrics import Floats, Integers
from densepath.transfer.probe.stratified import stratified_group_folds

STRENGTHS = tuple(10.0**power for power in range(-6, 1))  # scikit-learn's C
_PLAIN = 1e-2  # where a training set has too few patients to choose
_INNER = 3  # folds
_STEPS = 1000  # of L-BFGS
_EXACT = 1e-6  # of the gradient
_TINY = 1e-12


@dataclass(frozen=True, eq=False)
class Fitted:
    """A classifier's probabilities for test images.

    Args:
        chances: (M, K).
        strength: the C of logistic regression; None for nearest neighbors.
    """

    chances: Floats
    strength: float | None = None


def nearest_neighbors(train: Floats, truth: Integers, test: Floats, classes: int, neighbors: int) -> Fitted:
    """The classes of the k most similar training images, each with one vote.

    Features are centered by the mean of the training images and divided by their norms, so that the nearest images
    are those with the highest cosine similarity.

    Args:
        train: (N, D).
        truth: (N,) classes from 0.
        test: (M, D).
        classes: K.
        neighbors: k; all training images if there are fewer.

    Source: the kNN probe of UNI (Chen et al., Nature Medicine 2024), methods, with k = 20.
    """
    from sklearn.neighbors import KNeighborsClassifier

    mean = train.mean(0)
    unit_train, unit_test = (_unit(x - mean) for x in (train, test))
    model = KNeighborsClassifier(min(neighbors, len(train)), algorithm="brute").fit(unit_train, truth)
    return Fitted(_spread(model.predict_proba(unit_test), model.classes_, classes))


def logistic_regression(
    train: Floats, truth: Integers, test: Floats, classes: int, patients: Integers, seed: int
) -> Fitted:
    """Logistic regression on standardized features; the penalty is chosen within the training images.

    Of STRENGTHS, the one with the smallest cross-entropy in three folds of the training images by patient.

    Args:
        train, truth, test, classes: as for :func:`nearest_neighbors`.
        patients: (N,) the patients of the training images.
        seed: seed of these folds.
    """
    mean, scale = train.mean(0), train.std(0)
    scale = np.where(scale > 1e-6 * (1 + np.abs(mean)), scale, np.inf)  # a constant feature has no information
    x, z = (train - mean) / scale, (test - mean) / scale
    if x.shape[1] > x.shape[0]:  # rotated into the space of the training images: the same solution
        axes = np.linalg.svd(x, full_matrices=False)[2]
        x, z = x @ axes.T, z @ axes.T
    strength = _choose(x, truth, patients, seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # convergence: features without information separate nothing
        model = _model(strength, tol=_EXACT).fit(x, truth)
    return Fitted(_spread(model.predict_proba(z), model.classes_, classes), strength)


def _choose(x: Floats, truth: Integers, patients: Integers, seed: int) -> float:
    splits = _inner_folds(truth, patients, seed)
    if not splits:
        return _PLAIN
    losses = np.zeros(len(STRENGTHS))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for fit, held in splits:
            model = _model(STRENGTHS[0], warm_start=True)  # from strong to weak penalties
            for row, strength in enumerate(STRENGTHS):
                model.set_params(C=strength).fit(x[fit], truth[fit])
                own = np.searchsorted(model.classes_, truth[held])
                chance = model.predict_proba(x[held])[np.arange(len(held)), own]
                losses[row] -= np.log(np.maximum(chance, _TINY)).sum()
    return STRENGTHS[int(losses.argmin())]


def _inner_folds(truth: Integers, patients: Integers, seed: int) -> Sequence[tuple[Any, Any]]:
    """Folds of the training images by patient in which each class can be learned; none if patients are too few."""
    least = min(len(np.unique(patients[truth == c])) for c in np.unique(truth))
    if least < 2:
        return []
    count = min(_INNER, least)
    tested = stratified_group_folds(truth, patients, count, seed)
    splits = [(np.flatnonzero(tested != fold), np.flatnonzero(tested == fold)) for fold in range(count)]
    return [(fit, held) for fit, held in splits if len(np.unique(truth[fit])) == len(np.unique(truth)) and len(held)]


def _model(strength: float, **options: Any) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=strength, max_iter=_STEPS, **options)


def _unit(x: Floats) -> Floats:
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), _TINY)


def _spread(chances: npt.NDArray[Any], known: Integers, classes: int) -> Floats:
    """Probabilities (M, K) of all classes, from those of the classes in the training images."""
    out = np.zeros((len(chances), classes))
    out[:, known] = chances
    return out
