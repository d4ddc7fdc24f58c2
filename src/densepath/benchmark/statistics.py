"""The few statistics that runs over several seeds allow."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

LEAST_FOR_RANKS = 6  # under six pairs the least two-sided p of a signed-rank test, 2 / 2**n, is above 0.05


@dataclass(frozen=True)
class Comparison:
    """Runs beside those of a baseline with the same seeds.

    Args:
        n: seeds that both have.
        difference: the mean of the differences.
        p: two-sided, of the paired t-test; None with fewer than two seeds, or where all differences are equal.
        p_ranks: two-sided, of Wilcoxon's signed-rank test; None with fewer than six seeds, where it can show nothing.
    """

    n: int
    difference: float
    p: float | None
    p_ranks: float | None


def mean_std(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean, and the standard deviation of the sample (n - 1), None of a single value."""
    if not values:
        raise ValueError("no values")
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None


def compare(values: Mapping[int, float], baseline: Mapping[int, float]) -> Comparison | None:
    """Compare runs with a baseline, seed by seed; None where they have no seed in common.

    The p-values are of one comparison each; a table makes many.
    """
    seeds = sorted(values.keys() & baseline.keys())
    if not seeds:
        return None
    differences = np.array([values[seed] - baseline[seed] for seed in seeds], np.float64)
    p = p_ranks = None
    if len(seeds) > 1 and not math.isclose(np.ptp(differences), 0.0, abs_tol=1e-12):
        p = float(stats.ttest_rel([values[seed] for seed in seeds], [baseline[seed] for seed in seeds]).pvalue)
        if len(seeds) >= LEAST_FOR_RANKS:
            p_ranks = float(stats.wilcoxon(differences).pvalue)
    return Comparison(len(seeds), float(differences.mean()), p, p_ranks)
