"""Scores of predicted numbers and risks."""

from __future__ import annotations

import numpy as np

from densepath.transfer.probe.metrics import Floats, Integers


def concordance(times: Floats, events: Floats, risks: Floats) -> float:
    """The share of comparable pairs in which the case with the earlier event has the higher risk; ties count half.

    Args:
        times: (N,) times of the event, or of the last observation.
        events: (N,) 1 where the event was observed.
        risks: (N,) predicted risks.

    Returns:
        From 0 to 1; NaN without a comparable pair.

    Source: Harrell et al., JAMA 1982.
    """
    earlier = (times[:, None] < times[None]) | ((times[:, None] == times[None]) & (events[None] < events[:, None]))
    pairs = earlier & (events[:, None] > 0)
    won = (risks[:, None] > risks[None]) + 0.5 * (risks[:, None] == risks[None])
    return float((won * pairs).sum() / pairs.sum()) if pairs.any() else float(np.nan)


def mean_concordance(targets: Floats, risks: Floats, folds: Integers) -> float:
    """The mean of the folds' :func:`concordance`, weighted by their cases: risks of different models do not compare.

    Args:
        targets: (N, 2) time, and whether the event was observed.
        risks: (N,).
        folds: (N,).
    """
    found, sizes = [], []
    for fold in np.unique(folds):
        own = folds == fold
        value = concordance(targets[own, 0], targets[own, 1], risks[own])
        if np.isfinite(value):
            found.append(value)
            sizes.append(int(own.sum()))
    return float(np.average(found, weights=sizes)) if found else float(np.nan)


def number_scores(truth: Floats, values: Floats) -> dict[str, float]:
    """R2 and Pearson's correlation of numbers (N,), as shares of 1; NaN where one is undefined."""
    spread = ((truth - truth.mean()) ** 2).sum()
    known = spread > 0 and values.std() > 0
    return {
        "r2": float(1 - ((values - truth) ** 2).sum() / spread) if spread > 0 else float(np.nan),
        "pearson": float(np.corrcoef(values, truth)[0, 1]) if known else float(np.nan),
    }
