"""The best row of a task against the second best, as some papers report it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from densepath.benchmark.results import Entry, Results, better_when_lower, column_name
from densepath.benchmark.statistics import compare


def best_lines(results: Results) -> Iterator[str]:
    """A line for each task whose p-value the paper reports: ours, and the paper's.

    The paper's two best rows are those of the whole paper, as its p-value is: the table may have computed others only.
    """
    for task in results.config.tasks:
        p, metric = results.config.p_values.get(task.name), task.metrics[0]
        entries = [e for (_, *place), e in results.entries.items() if place == [task.name, metric]]
        if p is None or not entries:
            continue
        numbers = results.config.published.get(task.name, {})
        published = _two_best(numbers, metric)
        line = f"{task.table}, {column_name(task, metric)}, best against second best: {_measured(entries, metric)}"
        if published:
            first, second = published
            line += f"; the paper: {_compared(first, second, numbers[first] - numbers[second])} (p = {p:.2g})"
        yield f"{line}."


def _measured(entries: Sequence[Entry], metric: str) -> str:
    means = {e.row.name: e.mean_std[0] for e in entries if e.mean_std}
    found = _two_best(means, metric)
    if found is None:
        return "not measured"
    first, second = found
    values = {e.row.name: e.values for e in entries}
    pairs = compare(values[first], values[second])
    if pairs is None:
        return _compared(first, second, means[first] - means[second])
    return _compared(first, second, pairs.difference) + (f" (p = {pairs.p:.2g})" if pairs.p is not None else "")


def _two_best(numbers: Mapping[str, float], metric: str) -> tuple[str, str] | None:
    """The names of the two best rows; None if there are fewer."""
    if len(numbers) < 2:
        return None
    first, second, *_ = sorted(numbers, key=lambda name: numbers[name], reverse=not better_when_lower(metric))
    return first, second


def _compared(first: str, second: str, difference: float) -> str:
    """``difference`` is that of the first and the second; of their common seeds it may contradict the order."""
    return f"{first} is {abs(difference):.1f} {'above' if difference >= 0 else 'below'} {second}"
