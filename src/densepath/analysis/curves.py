"""Curves of the measurements of runs: ``curves.png`` in a run folder, and ``densepath show curves``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from densepath.analysis.panels import FAINT, INK, LINES, add_legend, new_figure, picture_file, save
from densepath.analysis.short_names import short_names
from densepath.core.errors import UserError
from densepath.core.fonts import drawable
from densepath.core.paths import AnyPath, as_texts
from densepath.core.single_values import take_single_values
from densepath.runs.closing import CHANCE
from densepath.runs.folder import CURVES, read_config
from densepath.runs.metrics import METRICS, read_metrics

_SMOOTHING = 25  # the running mean of a curve covers 1/25 of its points
_NOT_CURVES = ("step", "epoch")
_PER_ROW = 4  # panels
_TICKS = 5  # intervals between the steps of a panel that are labeled: more labels would touch
TRAINING = re.compile(r"(fold|seed)_\d+|lr[^/]+_wd[^/]+")  # the folder of a training of a run


@take_single_values
def show_curves(*, runs: Sequence[AnyPath], out: str | Path, columns: Sequence[str] | None = None) -> Path:
    """Draw the measurements of runs: one panel for each measurement, one line for each run.

    A run with several trainings (folds, seeds) has a thin line for each and a thick one for their mean.

    Args:
        runs: up to six run folders; the runs may still be in progress.
        out: a PNG file.
        columns: columns of ``metrics.csv``; default: losses (relative to chance where that is known), the learning
            rate and scores.

    Returns:
        ``out``.

    Raises:
        UserError: no such runs or measurements, or a file name that does not end in .png.
    """
    out, folders = picture_file(out), as_texts(runs)
    if not 0 < len(folders) <= len(LINES):
        raise UserError(f"{len(folders)} runs are given; give from 1 to {len(LINES)}")
    files = {name: metrics_of(Path(run)) for name, run in zip(short_names(folders, "runs"), folders, strict=True)}
    return draw_curves(files, out, columns=columns or main_columns(path for own in files.values() for path in own))


def metrics_of(run: Path) -> list[Path]:
    """The metrics files of the trainings of a run: its own, or those of its folds and seeds.

    Raises:
        UserError: it is not the folder of a run, or one with several models.
    """
    own = run / METRICS
    if own.is_file():
        return [own]
    below = [
        path for path in sorted(run.rglob(METRICS)) if all(map(TRAINING.fullmatch, path.relative_to(run).parent.parts))
    ]
    models = sorted({path.parent for path in run.glob("*/fold_*") if not TRAINING.fullmatch(path.parent.name)})
    if models and not below:
        raise UserError(f"{run} has several models; name some of them, such as {models[0]}")
    if not below and (not run.is_dir() or read_config(run) is None):
        raise UserError(f"{run} is not the folder of a run; give those of pretrain, detect, classify, segment or mil")
    return below or [own]


def draw_run(run: Path) -> Path:
    """Draw the measurements of a run into its folder."""
    files = {run.name: run / METRICS}
    return draw_curves(files, run / CURVES, columns=main_columns(files.values()))


def main_columns(files: Iterable[Path]) -> list[str]:
    """The columns of metrics files that show how training goes: losses, the learning rate and scores."""
    found = list(dict.fromkeys(column for file in files for row in read_metrics(file) for column in row))
    losses = [c for c in found if c.endswith(CHANCE)] or [c for c in found if c.startswith("loss_")]
    scores = [c for c in found if c == "accuracy" or c.startswith(("probe_", "validation_"))]
    return [c for c in ("loss", *losses, "lr", *scores) if c in found]


def draw_curves(
    runs: Mapping[str, str | Path | Sequence[Path]], path: str | Path, *, columns: Sequence[str] | None = None
) -> Path:
    """Draw the metrics of runs: one panel per column of the file, one line per run, and a dashed line for chance.

    Args:
        runs: name -> metrics file, or those of its trainings, which are drawn with their mean.
        path: a PNG file.
        columns: columns to draw; None draws all but step and epoch.

    Raises:
        UserError: the files hold no numbers.
    """
    files = {name: [Path(own)] if isinstance(own, str | Path) else own for name, own in runs.items()}
    measured = {name: [read_metrics(file) for file in own] for name, own in files.items()}
    known = dict.fromkeys(
        c for own in measured.values() for rows in own for row in rows for c in row if c not in _NOT_CURVES
    )
    if columns is None:
        columns = sorted(known, key=lambda c: "loss" not in c)
    if missing := [column for column in columns if known and column not in known]:
        raise UserError(f"no run has measured {missing[0]}; there are: {', '.join(known)}")
    if not columns or not known:
        begun = ", ".join(str(own[0]) for own in files.values())
        raise UserError(f"there is nothing to draw in {begun}; train for some steps first")
    across = min(_PER_ROW, len(columns))
    down = -(-len(columns) // across)
    figure = new_figure(2.7 * across, 1.95 * down)
    grid = figure.subplots(down, across, squeeze=False)
    for axes, column in zip(grid.flat, columns, strict=False):
        if column.endswith(CHANCE):
            axes.axhline(1, color=FAINT, lw=1, ls=(0, (3, 2)))
        for own, color in zip(measured.values(), LINES, strict=False):
            points = [[(row["step"], row[column]) for row in rows if column in row] for rows in own]
            paint_curves(axes, [np.array(each) for each in points if each], color)
        title = f"{column.removesuffix(CHANCE)} / chance" if column.endswith(CHANCE) else column
        style_curve(axes, title.replace("_", " "))
        axes.xaxis.set_major_locator(MaxNLocator(_TICKS, integer=True, min_n_ticks=1))
    for axes in grid.flat[len(columns) :]:
        axes.set_axis_off()
    figure.tight_layout(pad=0.7)
    if len(runs) > 1:
        handles = [grid.flat[0].plot([], [], color=c, lw=2)[0] for _, c in zip(runs, LINES, strict=False)]
        add_legend(figure, handles, [name if any(measured[name]) else f"{name} (not measured yet)" for name in runs])
    return save(figure, path)


def paint_curves(axes: Axes, trainings: Sequence[np.ndarray], color: str) -> None:
    """Plot the points (N, 2) of the trainings of a run in a panel; several ones faintly, and their mean."""
    if len(trainings) < 2:
        for points in trainings:
            paint_curve(axes, points, color)
        return
    for points in trainings:
        axes.plot(*points.T, color=color, lw=0.7, alpha=0.35)
    first, last = max(points[0, 0] for points in trainings), min(points[-1, 0] for points in trainings)
    steps = np.unique(np.concatenate([points[:, 0] for points in trainings]))
    if len(steps := steps[(steps >= first) & (steps <= last)]):  # where all have a value
        mean = np.mean([np.interp(steps, *points.T) for points in trainings], axis=0)
        paint_curve(axes, np.stack([steps, mean], axis=1), color)


def paint_curve(axes: Axes, points: np.ndarray, color: str) -> None:
    """Plot points (N, 2) in a panel, faintly, and their running mean."""
    window = max(1, len(points) // _SMOOTHING)
    if window > 1:
        axes.plot(*points.T, color=color, lw=0.7, alpha=0.3)
        kernel = np.ones(window) / window
        points = np.stack([np.convolve(p, kernel, mode="valid") for p in points.T], axis=1)
    one = len(points) == 1  # a dot, whole at the edge of the panel
    axes.plot(*points.T, color=color, lw=1.8, marker="o" if one else None, clip_on=not one)


def style_curve(axes: Axes, title: str, across: str = "step") -> None:
    """Set the title of a panel of curves and style its axes; ``across`` is the label of the horizontal axis."""
    axes.set_title(drawable(title), fontsize=9, loc="left", color=INK)
    axes.set_xlabel(across, fontsize=7.5, color=FAINT, labelpad=1)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(labelsize=7.5, color=FAINT, labelcolor=FAINT)
    axes.grid(axis="y", color="#e6e6ec", lw=0.7)
    axes.set_axisbelow(True)
    axes.margins(x=0.01)
