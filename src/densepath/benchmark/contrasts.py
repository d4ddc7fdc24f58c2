"""What a table says beyond its rows: sums of rows minus others, and whether its tasks agree about weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy import stats

from densepath.benchmark.results import Results, column_name
from densepath.benchmark.statistics import ROUNDING
from densepath.core.errors import counted
from densepath.core.spacing import varies


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds, with its 95% confidence interval by the t distribution.

    Args:
        n: number of seeds.
        mean: the mean.
        half_width: half the width of the interval; None for one seed, or without spread, of which it would be 0.
    """

    n: int
    mean: float
    half_width: float | None


def contrast(values: Mapping[str, Mapping[int, float]], plus: Sequence[str], minus: Sequence[str]) -> Estimate | None:
    """The sum of some rows minus that of others, paired by seed; None if no seed is in all of them.

    Args:
        values: row -> seed -> score.
        plus, minus: the rows.
    """
    rows = [values.get(row, {}) for row in (*plus, *minus)]
    seeds = sorted(set(rows[0]).intersection(*rows[1:]))
    if not seeds:
        return None
    sums = np.array([sum(values[r][s] for r in plus) - sum(values[r][s] for r in minus) for s in seeds])
    if len(seeds) == 1 or np.ptp(sums) <= ROUNDING:
        return Estimate(len(seeds), float(sums.mean()), None)
    error = float(sums.std(ddof=1)) / math.sqrt(len(seeds))
    return Estimate(len(seeds), float(sums.mean()), float(stats.t.ppf(0.975, len(seeds) - 1)) * error)


def contrast_lines(results: Results) -> list[str]:
    """One line for each contrast of a table that has any, and one for each pair of its tasks."""
    return [*_contrasts(results), *_agreements(results)] if results.config.contrasts else []


def _contrasts(results: Results) -> Iterator[str]:
    columns = [column for part in results.parts().values() for column in part]
    for named in results.config.contrasts:
        found = []
        for task, metric in columns:
            values = {row.name: results.entries[row.name, task.name, metric].values for row in results.rows()}
            estimate = contrast(values, named.plus, named.minus)
            if estimate is not None:
                found.append(f"{column_name(task, metric)} {_shown(estimate)}")
        if found:
            yield f"{named.name} ({' + '.join(named.plus)} - {' - '.join(named.minus)}): {'; '.join(found)}."


def _shown(estimate: Estimate) -> str:
    if estimate.half_width is None:
        spread = f"{estimate.n} seeds without spread: no interval" if estimate.n > 1 else "one seed"
        return f"{estimate.mean:+.1f} ({spread})"
    low, high = estimate.mean - estimate.half_width, estimate.mean + estimate.half_width
    return f"{estimate.mean:+.1f} (95% interval {low:+.1f} to {high:+.1f}, {counted(estimate.n, 'seed')})"


def _agreements(results: Results) -> Iterator[str]:
    """The correlation of two tasks' first metrics over the rows: runs of a row differ in the seed only.

    A row's seeds are one point, their mean, as they are not independent of each other. A seed counts if both tasks
    have it.
    """
    tasks = {task.name: task for part in results.parts().values() for task, _ in part}
    for one, other in combinations(tasks.values(), 2):
        means, runs = [], 0
        for row in results.rows():
            x, y = (results.entries[row.name, task.name, task.metrics[0]].values for task in (one, other))
            if shared := sorted(x.keys() & y.keys()):
                means.append([np.mean([scores[seed] for seed in shared]) for scores in (x, y)])
                runs += len(shared)
        if len(means) > 2 and varies(np.array(means).T, np.ones((2, len(means)), bool)).all():
            a, b = np.array(means).T
            yield (
                f"Correlation of {column_name(one, one.metrics[0])} and {column_name(other, other.metrics[0])} over "
                f"{len(means)} rows (means of {runs} runs): {stats.pearsonr(a, b).statistic:.2f}; of their ranks: "
                f"{stats.spearmanr(a, b).statistic:.2f}."
            )
