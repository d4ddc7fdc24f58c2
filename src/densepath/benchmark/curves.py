"""Plots of scores against the length of pre-training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter

from densepath.analysis.curves import style_curve
from densepath.analysis.panels import FAINT, INK, LINES, add_legend, new_figure, save
from densepath.benchmark.results import Entry, Results, column_name

_PANEL = (4.4, 2.9)  # inches
_MAX_COLUMNS = 3
_MARKERS = "os^"  # one marker for the first round of colors, the next one for the second, and so on


def draw_budgets(results: Results, budgets: Mapping[str, int], path: str | Path) -> Path | None:
    """Draw the first metric of every task against the number of images in pre-training, one line per curve.

    A row that has a curve but no pre-training is a horizontal line with its name. The paper's numbers are dashed.

    Args:
        results: the results so far.
        budgets: row -> number of images in its pre-training.
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
    trained = [name for name in names if any(e.row.curve == name and e.row.name in budgets for p in panels for e in p)]
    looks = {name: (LINES[i % len(LINES)], _MARKERS[i // len(LINES) % len(_MARKERS)]) for i, name in enumerate(trained)}
    across = min(_MAX_COLUMNS, len(panels))
    down = -(-len(panels) // across)
    figure = new_figure(_PANEL[0] * across, _PANEL[1] * down)
    grid = figure.subplots(down, across, squeeze=False)
    for axes, panel in zip(grid.flat, panels, strict=False):
        for name in names:
            _line(axes, [entry for entry in panel if entry.row.curve == name], budgets, *looks.get(name, (FAINT, "")))
        _name_lines(axes, [(e.mean_std[0], str(e.row.curve)) for e in panel if e.row.curve not in looks and e.mean_std])
        first = panel[0]
        style_curve(axes, f"{first.task.table}: {column_name(first.task, first.metric)}", "images in pre-training")
        axes.margins(x=0.05)
        axes.xaxis.set_major_formatter(EngFormatter())
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    handles = []
    for color, marker in looks.values():
        handles += grid.flat[0].plot([], [], color=color, marker=marker, ms=4, lw=1.8)
    labels = [str(name) for name in looks]
    if any(entry.paper is not None for panel in panels for entry in panel):
        handles += grid.flat[0].plot([], [], color=INK, lw=1.3, ls="--", alpha=0.6)
        labels.append("the paper's")
    add_legend(figure, handles, labels, "lower center")
    return save(figure, path)


def _name_lines(axes: Axes, lines: list[tuple[float, str]]) -> None:
    """The names of horizontal lines (y, name) on them, at the right and at the left in turns: two do not overlap."""
    place = axes.get_yaxis_transform()  # x as a share of the panel
    for number, (y, name) in enumerate(sorted(lines)):
        x, side = ((1, "right"), (0, "left"))[number % 2]
        axes.text(x, y, name, color=FAINT, fontsize=8, transform=place, ha=side, va="bottom")


def _line(axes: Axes, entries: list[Entry], budgets: Mapping[str, int], color: str, marker: str) -> None:
    """One curve with standard deviations, and the paper's curve."""
    for entry in entries:
        if entry.row.name not in budgets and entry.mean_std:
            axes.axhline(entry.mean_std[0], color=color, lw=1.4)
            if entry.mean_std[1]:
                low, high = (entry.mean_std[0] + sign * entry.mean_std[1] for sign in (-1, 1))
                axes.axhspan(low, high, color=color, alpha=0.1, lw=0)
    placed = sorted((entry for entry in entries if entry.row.name in budgets), key=lambda e: budgets[e.row.name])
    points = [(budgets[e.row.name], *e.mean_std) for e in placed if e.mean_std]
    if points:
        x, mean, std = np.array([(x, mean, std or 0.0) for x, mean, std in points]).T
        axes.errorbar(x, mean, std, color=color, lw=1.8, marker=marker, ms=4, capsize=3, elinewidth=1)
    published = [(budgets[e.row.name], e.paper) for e in placed if e.paper is not None]
    if published:
        axes.plot(*np.array(published).T, color=color, lw=1.3, ls="--", alpha=0.6)
