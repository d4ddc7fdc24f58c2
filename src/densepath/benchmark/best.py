"""The best row of a task against the second best, as some papers report it."""

from __future__ import annotations

from collections.abc import Iterator

from densepath.benchmark.results import Entry, Results, column_name
from densepath.benchmark.statistics import compare


def best_lines(results: Results) -> Iterator[str]:
    """A line for each task whose p-value the paper reports: ours, and the paper's."""
    for task in results.config.tasks:
        p = results.config.p_values.get(task.name)
        entries = [
            e for (_, name, metric), e in results.entries.items() if (name, metric) == (task.name, task.metrics[0])
        ]
        if p is None or not entries:
            continue
        published = _two_best({e.row.name: e.paper for e in entries if e.paper is not None})
        line = f"{task.table}, {column_name(task, task.metrics[0])}, best against second best: {_measured(entries)}"
        yield f"{line}; the paper: {_named(*published)} (p = {p:.2g})." if published else f"{line}."


def _measured(entries: list[Entry]) -> str:
    known = {e.row.name: e.mean_std[0] for e in entries if e.mean_std}
    found = _two_best(known)
    if found is None:
        return "not measured"
    values = {e.row.name: e.values for e in entries}
    pairs = compare(values[found[0]], values[found[1]])
    return _named(*found) + (f" (p = {pairs.p:.2g})" if pairs and pairs.p is not None else "")


def _two_best(scores: dict[str, float]) -> tuple[str, str, float] | None:
    """The names of the two best rows, and the difference of their scores; None if there are fewer."""
    if len(scores) < 2:
        return None
    first, second = sorted(scores, key=lambda name: -scores[name])[:2]
    return first, second, scores[first] - scores[second]


def _named(first: str, second: str, difference: float) -> str:
    return f"{first} is {difference:.1f} above {second}"
