"""Statistics of runs with several seeds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

_DIGITS = 9  # after the decimal point, in percent: scores are rounded far below, which would break ties of ranks
ROUNDING = 1e-9  # of sums and differences of percentages: with a smaller range, values have no spread
MIN_PAIRS_FOR_RANKS = 6  # with fewer pairs the smallest two-sided p of a signed-rank test, 2 / 2**n, is above 0.05


@dataclass(frozen=True)
class Comparison:
    """Comparison of runs with those of a baseline, paired by seed.

    Args:
        n: number of common seeds.
        difference: the mean difference.
        p: two-sided p of the paired t-test; None with fewer than two seeds, or if all differences are equal.
        p_ranks: two-sided p of Wilcoxon's signed-rank test; None with fewer than six seeds, where it cannot be
            significant.
    """

    n: int
    difference: float
    p: float | None
    p_ranks: float | None


def mean_std(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean and the sample standard deviation (n - 1); None in its place for a single value."""
    if not values:
        raise ValueError("no values")
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None


def span(counts: Iterable[int]) -> str:
    """The least and the largest of several counts, as a text; one number if they are equal."""
    known = sorted({*counts})
    return str(known[0]) if len(known) == 1 else f"{known[0]}–{known[-1]}"


def compare(values: Mapping[int, float], baseline: Mapping[int, float]) -> Comparison | None:
    """Compare runs with a baseline, paired by seed; None if they have no seed in common.

    The p-values are not corrected for the number of comparisons.
    """
    seeds = sorted(values.keys() & baseline.keys())
    if not seeds:
        return None
    differences = np.array([values[seed] - baseline[seed] for seed in seeds], np.float64)
    p = p_ranks = None
    if len(seeds) > 1 and np.ptp(differences) > ROUNDING:
        p = float(stats.ttest_rel([values[seed] for seed in seeds], [baseline[seed] for seed in seeds]).pvalue)
        if len(seeds) >= MIN_PAIRS_FOR_RANKS:
            p_ranks = float(stats.wilcoxon(differences.round(_DIGITS)).pvalue)
    return Comparison(len(seeds), float(differences.mean()), p, p_ranks)
