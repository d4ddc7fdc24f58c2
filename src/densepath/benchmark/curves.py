"""Plots of scores against the length of pre-training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter

from densepath.analysis.curves import style_curve
from densepath.analysis.panels import FAINT, INK, LINES, add_legend, new_figure, save
from densepath.benchmark.results import Entry, Results, column_name

PAPER: dict[str, Any] = {"lw": 1.3, "ls": "--", "marker": ".", "ms": 5, "alpha": 0.6}  # the paper's numbers
_SEED: dict[str, Any] = {"lw": 0.8, "marker": ".", "ms": 3, "alpha": 0.6}
_BAND = 0.15  # opacity, from the lowest to the highest seed
_PANEL = (4.4, 2.9)  # inches
_MAX_COLUMNS = 3
_MARKERS = "os^"  # one marker for the first round of colors, the next one for the second, and so on


def draw_budgets(results: Results, budgets: Mapping[tuple[str, str], int], path: str | Path) -> Path | None:
    """Draw the first metric of every task against the number of images in pre-training, one line per curve.

    A row that has a curve but no pre-training is a horizontal line with its name. The paper's numbers are dashed.

    Args:
        results: the results so far.
        budgets: (row, task) -> number of images in the pre-training.
        path: a PNG file.

    Returns:
        The file, or None if the table has no curves or no results yet.
    """
    tasks = dict.fromkeys(task.name for columns in results.parts().values() for task, _ in columns)
    shown = [e for e in results.entries.values() if e.row.curve is not None and e.metric == e.task.metrics[0]]
    panels = [[entry for entry in shown if entry.task.name == task] for task in tasks]
    panels = [panel for panel in panels if any(entry.values for entry in panel)]
    if not panels:
        return None
    names = list(dict.fromkeys(entry.row.curve for panel in panels for entry in panel))
    trained = {e.row.curve for panel in panels for e in panel if _place(e) in budgets}
    looks = looks_of([name for name in names if name in trained])
    across = min(_MAX_COLUMNS, len(panels))
    down = -(-len(panels) // across)
    figure = new_figure(_PANEL[0] * across, _PANEL[1] * down)
    grid = figure.subplots(down, across, squeeze=False)
    for axes, panel in zip(grid.flat, panels, strict=False):
        for name in names:
            _line(axes, [entry for entry in panel if entry.row.curve == name], budgets, *looks.get(name, (FAINT, "")))
        _name_lines(axes, [(e.mean_std[0], str(e.row.curve)) for e in panel if e.row.curve not in looks and e.mean_std])
        first = panel[0]
        style_curve(axes, f"{first.task.table}: {column_name(first.task, first.metric)}", "images seen in pre-training")
        axes.margins(x=0.05)
        axes.xaxis.set_major_formatter(EngFormatter())
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    handles = []
    for color, marker in looks.values():
        handles += grid.flat[0].plot([], [], color=color, marker=marker, ms=4, lw=1.8)
    labels = [str(name) for name in looks]
    add_meanings(grid.flat[0], (entry for panel in panels for entry in panel), handles, labels)
    add_legend(figure, handles, labels, "lower center")
    return save(figure, path)


def looks_of(names: Sequence[Any]) -> dict[Any, tuple[str, str]]:
    """The color and the marker of each line, by its name: no two of up to eighteen lines look alike."""
    return {
        name: (LINES[number % len(LINES)], _MARKERS[number // len(LINES) % len(_MARKERS)])
        for number, name in enumerate(names)
    }


def _place(entry: Entry) -> tuple[str, str]:
    """The row and the task of an entry."""
    return entry.row.name, entry.task.name


def _name_lines(axes: Axes, lines: list[tuple[float, str]]) -> None:
    """The names of horizontal lines (y, name) on them, at the right and at the left in turns: two do not overlap."""
    place = axes.get_yaxis_transform()  # x as a share of the panel
    for number, (y, name) in enumerate(sorted(lines)):
        x, side = ((1, "right"), (0, "left"))[number % 2]
        axes.text(x, y, name, color=FAINT, fontsize=8, transform=place, ha=side, va="bottom")


def _line(axes: Axes, entries: list[Entry], budgets: Mapping[tuple[str, str], int], color: str, marker: str) -> None:
    """One curve, and the paper's."""
    for entry in entries:
        if _place(entry) not in budgets and entry.mean_std:
            axes.axhline(entry.mean_std[0], color=color, lw=1.4)
            axes.axhspan(min(entry.values.values()), max(entry.values.values()), color=color, alpha=_BAND, lw=0)
    points = [(budgets[_place(entry)], entry) for entry in entries if _place(entry) in budgets]
    draw_scores(axes, sorted(points, key=lambda point: point[0]), color, marker)


def add_meanings(axes: Axes, entries: Iterable[Entry], handles: list[Any], labels: list[str]) -> None:
    """Add what thin and dashed lines are to the handles and labels of a legend, where some entries have them."""
    entries = list(entries)
    if any(len(entry.values) > 1 for entry in entries):
        handles += axes.plot([], [], color=INK, **_SEED)
        labels.append("one seed")
    if any(entry.paper is not None for entry in entries):
        handles += axes.plot([], [], color=INK, **PAPER)
        labels.append("the paper's")


def draw_scores(axes: Axes, points: Sequence[tuple[float, Entry]], color: str, marker: str = "o") -> None:
    """A thick line of means, a thin one for each seed, and dashed the paper's numbers.

    Args:
        axes: the panel.
        points: places on the x axis, in order, and what is there.
        color, marker: of the line.
    """
    known = [(x, e.mean_std[0], e.values) for x, e in points if e.mean_std]
    places = [x for x, _, _ in known]
    axes.plot(places, [mean for _, mean, _ in known], color=color, lw=1.8, marker=marker, ms=4)
    for seed in sorted({seed for _, _, values in known for seed in values}):
        axes.plot(places, [values.get(seed, np.nan) for _, _, values in known], color=color, **_SEED)
    if published := [(x, e.paper) for x, e in points if e.paper is not None]:
        axes.plot(*np.array(published).T, color=color, **PAPER)
