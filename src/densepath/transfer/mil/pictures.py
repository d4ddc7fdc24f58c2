"""Pictures of the answers: ROC and precision-recall curves, the confusion matrix, calibration."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from densepath.core.files import atomic_write
from densepath.transfer.mil.results import Outcome
from densepath.transfer.probe.metrics import Floats, Integers, Score
from densepath.transfer.probe.record import draw_matrices

PICTURES = ("roc", "precision_recall", "confusion", "calibration")
_DPI = 120
_SIDE = 3.6  # inches
_BINS = 10
_GRID = np.linspace(0, 1, 201)
_MOST = 10  # classes in a legend


def draw_pictures(tested: Outcome, scores: dict[str, Score], out: Path) -> dict[str, Path]:
    """Draw the pictures of PICTURES as PNG files; returns their paths."""
    paths = {name: out / f"{name}.png" for name in PICTURES}
    with matplotlib.rc_context({"font.family": "DejaVu Sans", "font.size": 8}):
        _figure(paths["roc"], tested, scores, _roc)
        _figure(paths["precision_recall"], tested, scores, _precision_recall)
        _figure(paths["calibration"], tested, scores, _calibration)
    with atomic_write(paths["confusion"]) as part:
        draw_matrices({"": tested.confusion()}, tested.cohort.classes, part)
    return paths


def roc_curve(chance: Floats, positive: Floats) -> tuple[Floats, Floats]:
    """False and true positive rates at all thresholds, from (0, 0) to (1, 1)."""
    true, false = _above(chance, positive)
    return np.append(0, false / false[-1]), np.append(0, true / true[-1])


def _above(chance: Floats, positive: Floats) -> tuple[Floats, Floats]:
    """Numbers of positive and negative cases with at least each of the probabilities, from the highest one."""
    order = np.argsort(-chance, kind="stable")
    last = np.append(np.diff(chance[order]) < 0, True)
    hits = positive[order].astype(np.float64)
    return hits.cumsum()[last], (1 - hits).cumsum()[last]


def _figure(path: Path, tested: Outcome, scores: dict[str, Score], draw: object) -> None:
    figure = Figure((_SIDE + 0.4, _SIDE + 0.4), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    draw(axes, tested, scores)  # type: ignore[operator]
    axes.set_xlim(-0.01, 1.01)
    axes.set_ylim(-0.01, 1.01)
    axes.set_aspect("equal")
    axes.grid(alpha=0.25, linewidth=0.5)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    with atomic_write(path) as part:
        figure.savefig(part, format="png")


def _roc(axes: Axes, tested: Outcome, scores: dict[str, Score]) -> None:
    """The mean of the folds' curves, and the spread of their true positive rates."""
    axes.plot([0, 1], [0, 1], color="0.6", linewidth=0.8, linestyle="--")
    for number, name, folds in _shown(tested):
        curves = []
        for rows in folds:
            false, true = roc_curve(tested.values[rows, number], tested.truth[rows] == number)
            curves.append(np.append(0, np.interp(_GRID[1:], false, true)))
        _mean_line(axes, _GRID, np.stack(curves), _label(name, scores.get(f"auc_{name}"), "AUC"))
    axes.set_xlabel("false positive rate")
    axes.set_ylabel("true positive rate")
    axes.legend(loc="lower right", frameon=False)


def _precision_recall(axes: Axes, tested: Outcome, scores: dict[str, Score]) -> None:
    for number, name, folds in _shown(tested):
        curves = []
        for rows in folds:
            true, false = _above(tested.values[rows, number], tested.truth[rows] == number)
            place = np.searchsorted(true / true[-1], np.maximum(_GRID, 2e-9) - 1e-9).clip(max=len(true) - 1)
            curves.append((true / (true + false))[place])
        _mean_line(axes, _GRID, np.stack(curves), _label(name, scores.get(f"ap_{name}"), "AP"))
    axes.set_xlabel("recall")
    axes.set_ylabel("precision")
    axes.legend(loc="lower left", frameon=False)


def _calibration(axes: Axes, tested: Outcome, scores: dict[str, Score]) -> None:
    """The share of cases of a class among those with about the same probability; larger points are more cases."""
    axes.plot([0, 1], [0, 1], color="0.6", linewidth=0.8, linestyle="--")
    for number, name in enumerate(tested.cohort.classes[:_MOST]):
        chance, positive = tested.values[:, number], tested.truth == number
        bins = np.minimum((chance * _BINS).astype(int), _BINS - 1)
        used = np.unique(bins)
        counts = np.array([(bins == b).sum() for b in used])
        mean = [chance[bins == b].mean() for b in used]
        share = [positive[bins == b].mean() for b in used]
        (line,) = axes.plot(mean, share, linewidth=1, label=name)
        axes.scatter(mean, share, 8 + 120 * counts / counts.sum(), color=line.get_color(), zorder=3)
    axes.set_xlabel("predicted probability")
    axes.set_ylabel("share of cases")
    axes.legend(loc="upper left", frameon=False)


def _shown(tested: Outcome) -> list[tuple[int, str, list[Integers]]]:
    """The classes, with the rows of the folds that have cases of the class and of others."""
    shown = []
    for number, name in enumerate(tested.cohort.classes[:_MOST]):
        folds: Sequence[Integers] = [np.flatnonzero(tested.folds == fold) for fold in np.unique(tested.folds)]
        known = [rows for rows in folds if 0 < (tested.truth[rows] == number).sum() < len(rows)]
        if known:
            shown.append((number, name, known))
    return shown


def _mean_line(axes: Axes, x: Floats, curves: Floats, label: str) -> None:
    mean = curves.mean(0)
    (line,) = axes.plot(x, mean, linewidth=1.4, label=label)
    if len(curves) > 1:
        spread = curves.std(0)
        low, high = np.maximum(mean - spread, 0), np.minimum(mean + spread, 1)
        axes.fill_between(x, low, high, color=line.get_color(), alpha=0.15, linewidth=0)


def _label(name: str, score: Score | None, what: str) -> str:
    short = name if len(name) <= 20 else f"{name[:19]}…"
    return short if score is None else f"{short}, {what} {score.value / 100:.3f}"
