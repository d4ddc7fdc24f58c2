"""Scores of predicted numbers and risks."""

from __future__ import annotations

import numpy as np

from densepath.core.spacing import varies
from densepath.transfer.probe.metrics import Floats, Integers, divide

_ROWS = 1024  # of a matrix of pairs that are compared at a time


def concordance(weights: Floats, times: Floats, events: Floats, risks: Floats) -> Floats:
    """The share of comparable pairs in which the case with the earlier event has the higher risk; ties count half.

    Args:
        weights: (B, N) how often each case is in each sample.
        times: (N,) times of the event, or of the last observation.
        events: (N,) 1 where the event was observed.
        risks: (N,) predicted risks.

    Returns:
        (B,) from 0 to 1; NaN without a comparable pair.

    Source: Harrell et al., JAMA 1982.
    """
    won, pairs = np.zeros(len(weights)), np.zeros(len(weights))
    exact = weights.astype(np.float32)  # sums of halves up to 2**23 are exact
    for start in range(0, len(times), _ROWS):
        own = np.s_[start : start + _ROWS]
        time, event, risk = (values[own, None] for values in (times, events, risks))
        compared = ((time < times) | ((time == times) & (events < event))) & (event > 0)
        halves = (risk > risks) + np.float32(0.5) * (risk == risks)
        pairs += (weights[:, own] * (exact @ compared.T.astype(np.float32))).sum(1)
        won += (weights[:, own] * (exact @ (halves * compared).T)).sum(1)
    return divide(won, pairs)


def mean_concordance(weights: Floats, targets: Floats, risks: Floats, folds: Integers) -> Floats:
    """The mean of the folds' :func:`concordance`, weighted by their cases: risks of different models do not compare.

    Args:
        weights: (B, N) how often each case is in each sample.
        targets: (N, 2) time, and whether the event was observed.
        risks: (N,).
        folds: (N,).

    Returns:
        (B,), NaN if no fold has a comparable pair.
    """
    total, sizes = np.zeros(len(weights)), np.zeros(len(weights))
    for fold in np.unique(folds):
        own = folds == fold
        value = concordance(weights[:, own], targets[own, 0], targets[own, 1], risks[own])
        size = weights[:, own].sum(1)
        known = np.isfinite(value)
        total[known] += (value * size)[known]
        sizes[known] += size[known]
    return divide(total, sizes)


def number_scores(weights: Floats, truth: Floats, values: Floats) -> dict[str, Floats]:
    """R2 and Pearson's correlation of numbers (N,) in each sample, (B,), as shares of 1; NaN where one is undefined.

    Args:
        weights: (B, N) how often each number is in each sample.
        truth, values: the numbers.
    """
    total = weights.sum(1, keepdims=True)
    of_truth, of_values = (each - (weights @ each)[:, None] / total for each in (truth, values))  # (B, N)
    spread, other = ((weights * each**2).sum(1) for each in (of_truth, of_values))
    spread = np.where(varies(truth, weights > 0), spread, np.nan)
    other = np.where(varies(values, weights > 0), other, np.nan)
    return {
        "r2": 1 - weights @ (values - truth) ** 2 / spread,
        "pearson": (weights * of_truth * of_values).sum(1) / np.sqrt(spread * other),
    }
