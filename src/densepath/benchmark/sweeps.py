"""Plots of scores against the one number in which rows, or tasks, of a table differ: a weight, a ratio, a fraction."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from densepath.analysis.curves import style_curve
from densepath.analysis.panels import FAINT, INK, add_legend, new_figure, save
from densepath.benchmark.checks import is_number
from densepath.benchmark.curves import add_meanings, draw_scores, looks_of
from densepath.benchmark.entries import Row, Task
from densepath.benchmark.results import Entry, Results, column_name
from densepath.benchmark.steps import STEPS
from densepath.core.plain import plain
from densepath.training.recipes import all_options

_PANEL = (4.4, 2.9)  # inches
_MAX_COLUMNS = 3
_LEAST = 3  # points of a sweep
_WIDE = 20  # the largest value divided by the smallest, from which an axis is logarithmic


@dataclass(frozen=True)
class Panel:
    """A plot.

    Args:
        title, axis: what is shown, and against what.
        lines: name -> (x, entry).
        levels: entries that have no x, as horizontal lines.
    """

    title: str
    axis: str
    lines: Mapping[str, list[tuple[float, Entry]]]
    levels: Sequence[Entry] = ()


def draw_sweeps(results: Results, path: str | Path) -> Path | None:
    """Draw the first metric of tasks against the number that rows sweep, and of rows against that which tasks sweep.

    The sweeps are found in the options: rows of one recipe, or tasks below one heading, at least three, that differ in
    one number. Rows whose length of pre-training is drawn as ``curve`` are left out. The paper's numbers are dashed.

    Args:
        results: the results so far.
        path: a PNG file.

    Returns:
        The file, or None if nothing is swept, or there are no results yet.
    """
    panels = [panel for panel in sweeps_of(results) if any(entry.values for entry in _swept(panel))]
    if not panels:
        return None
    lines = [(name, points) for panel in panels for name, points in panel.lines.items()]
    names = list(dict.fromkeys(name for name, points in lines if any(_known(entry) for _, entry in points)))
    others = [name for name in names if name != results.config.baseline]
    looks = dict.fromkeys(names, (FAINT, "o")) | looks_of(others)
    across = min(_MAX_COLUMNS, len(panels))
    down = -(-len(panels) // across)
    figure = new_figure(_PANEL[0] * across, _PANEL[1] * down)
    grid = figure.subplots(down, across, squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    for axes, panel in zip(grid.flat, panels, strict=False):
        for name, points in panel.lines.items():
            if name in looks:
                draw_scores(axes, points, *looks[name])
        for entry in panel.levels:
            if entry.mean_std:
                axes.axhline(entry.mean_std[0], color=FAINT, lw=1.4)
                axes.annotate(
                    entry.row.name,
                    (1, entry.mean_std[0]),
                    xycoords=("axes fraction", "data"),
                    fontsize=7,
                    ha="right",
                    va="bottom",
                    color=INK,
                )
        style_curve(axes, panel.title, panel.axis)
        axes.margins(x=0.05)
        _scale(axes, sorted({x for points in panel.lines.values() for x, _ in points}))
    handles = []
    for color, marker in (looks[name] for name in names):
        handles += grid.flat[0].plot([], [], color=color, marker=marker, ms=4, lw=1.8)
    add_meanings(grid.flat[0], (entry for panel in panels for entry in _swept(panel)), handles, names)
    add_legend(figure, handles, names, "lower center")
    return save(figure, path)


def sweeps_of(results: Results) -> Iterator[Panel]:
    """The sweeps of a table, with and without scores."""
    yield from _of_rows(results)
    yield from _of_tasks(results)


def axis_of(options: Sequence[Mapping[str, Any]]) -> tuple[str, dict[int, float]] | None:
    """The option that is swept, and its value at each position that belongs to the sweep; None if there is no sweep.

    Of the options with numbers it is the one with most values; positions that differ in another option from most are
    left out.
    """
    texts = [{name: repr(value) for name, value in own.items()} for own in options]
    counts = {n: Counter(own.get(n) for own in texts) for n in dict.fromkeys(n for own in texts for n in own)}
    varied = {name: found for name, found in counts.items() if len(found) > 1}
    numeric = [name for name in varied if all(_number(own.get(name)) is not None for own in options)]
    if not numeric:
        return None
    axis = max(numeric, key=lambda name: len(varied[name]))
    usual = {name: found.most_common(1)[0][0] for name, found in varied.items() if name != axis}
    kept = [i for i, own in enumerate(texts) if all(own.get(name) == value for name, value in usual.items())]
    values = {i: _number(options[i][axis]) for i in kept}
    places = {i: value for i, value in values.items() if value is not None}
    return (axis, places) if len(set(places.values())) >= _LEAST else None


def _number(value: Any) -> float | None:
    """A number, that of a schedule such as 0.5x, or the only one of a list, as of learning rates."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return _number(value[0]) if len(value) == 1 else None
    if isinstance(value, str) and value.endswith("x"):
        try:
            return float(value[:-1])
        except ValueError:
            return None
    return float(value) if is_number(value) else None


def _of_rows(results: Results) -> Iterator[Panel]:
    recipes: dict[str, list[Row]] = {}
    for row in results.rows():
        if row.recipe is not None and row.curve is None:
            recipes.setdefault(row.recipe, []).append(row)
    for rows in recipes.values():
        found = axis_of([_flat(row) for row in rows]) if len(rows) >= _LEAST else None
        if found is None:
            continue
        axis, places = found
        swept = {rows[i].name: x for i, x in places.items()}
        name = str(rows[0].recipe)
        for task, metric in (columns[0] for columns in _by_task(results)):
            own = {e.row.name: e for (_, t, m), e in results.entries.items() if (t, m) == (task.name, metric)}
            points = sorted(((x, own[row]) for row, x in swept.items()), key=lambda pair: pair[0])
            levels = [entry for row, entry in own.items() if row not in swept]
            yield Panel(f"{task.table}: {column_name(task, metric)}", _shown(axis), {name: points}, levels)


def _of_tasks(results: Results) -> Iterator[Panel]:
    for heading, columns in results.parts().items():
        tasks = list({task.name: task for task, _ in columns}.values())
        if len(tasks) < _LEAST or len({(task.verb, task.metrics) for task in tasks}) > 1:
            continue
        found = axis_of(_options_of(tasks))
        if found is None:
            continue
        axis, places = found
        metric = tasks[0].metrics[0]
        order = sorted(places, key=lambda i: places[i])
        lines = {
            row.name: [(places[i], results.entries[row.name, tasks[i].name, metric]) for i in order]
            for row in results.rows()
        }
        title = column_name(tasks[0], metric).removeprefix(tasks[0].column).strip()
        yield Panel(f"{heading}: {title}", _shown(axis), lines)


def _by_task(results: Results) -> Iterator[list[Any]]:
    for columns in results.parts().values():
        for name in dict.fromkeys(task.name for task, _ in columns):
            yield [column for column in columns if column[0].name == name]


def _options_of(tasks: Sequence[Task]) -> list[dict[str, Any]]:
    """The options of tasks of one verb that any of them sets, with their defaults in the others."""
    step, names = STEPS[tasks[0].verb], dict.fromkeys(name for task in tasks for name in task.options)
    return [{name: plain(task.options.get(name, step.default(name))) for name in names} for task in tasks]


def _flat(row: Row) -> dict[str, Any]:
    """All options of a row's pre-training with dotted names, those of its method with their defaults."""
    options = row.pretraining({})
    method = str(options.get("method", STEPS["pretrain"].default("method")))
    options["method_options"] = all_options(method, options.get("method_options"))
    return dict(_pairs(options, ""))


def _pairs(options: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in options.items():
        if isinstance(value, Mapping):
            yield from _pairs(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _shown(axis: str) -> str:
    return axis.rpartition(".")[2].replace("_", " ")


def _swept(panel: Panel) -> list[Entry]:
    return [entry for points in panel.lines.values() for _, entry in points]


def _known(entry: Entry) -> bool:
    return bool(entry.values) or entry.paper is not None


def _scale(axes: Axes, values: Sequence[float]) -> None:
    """Ticks at the values of a sweep, on a logarithmic axis if they span a factor of _WIDE."""
    if values[0] > 0 and values[-1] >= _WIDE * values[0]:
        axes.set_xscale("log")
        axes.minorticks_off()
    axes.set_xticks(values, [f"{value:g}" for value in values])
