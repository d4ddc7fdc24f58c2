"""Pictures of how well probabilities rank images: ROC and precision-recall curves, and calibration."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from densepath.core.files import atomic_write
from densepath.core.fonts import drawable
from densepath.transfer.probe.metrics import Floats, Integers, Score

_DPI = 120
_SIDE = 3.6  # inches
_BINS = 10
_GRID = np.linspace(0, 1, 201)
_MOST = 10  # classes in a legend


@dataclass(frozen=True, eq=False)
class Ranked:
    """The probabilities of a class or a label.

    Args:
        name: its name.
        chance: (N,) of the images of which it is known.
        positive: (N,) whether they have it.
        folds: (N,) the training that tested each.
    """

    name: str
    chance: Floats
    positive: Floats
    folds: Integers

    def of_folds(self) -> list[tuple[Floats, Floats]]:
        """Probabilities and truth for each fold with images that have it and others."""
        parts = [(self.chance[own], self.positive[own]) for own in (self.folds == f for f in np.unique(self.folds))]
        return [(chance, positive) for chance, positive in parts if 0 < positive.sum() < len(positive)]


def draw_curves(
    ranked: Sequence[Ranked], scores: Mapping[str, Score], out: Path, names: Sequence[str]
) -> dict[str, Path]:
    """Draw pictures as PNG files.

    Args:
        ranked: the classes or labels; the first ten are drawn.
        scores: "auc_NAME" and "ap_NAME", for the legends.
        out: their folder.
        names: of "roc", "precision_recall" and "calibration".
    """
    draw: dict[str, Callable[[Axes, Sequence[Ranked], Mapping[str, Score]], None]]
    draw = {"roc": _roc, "precision_recall": _precision_recall, "calibration": _calibration}
    paths = {name: out / f"{name}.png" for name in names}
    with matplotlib.rc_context({"font.family": "DejaVu Sans", "font.size": 8}):
        for name, path in paths.items():
            _figure(path, lambda axes, name=name: draw[name](axes, ranked[:_MOST], scores))  # type: ignore[misc]
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


def _figure(path: Path, draw: Callable[[Axes], None]) -> None:
    figure = Figure((_SIDE + 0.4, _SIDE + 0.4), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    draw(axes)
    axes.set_xlim(-0.01, 1.01)
    axes.set_ylim(-0.01, 1.01)
    axes.set_aspect("equal")
    axes.grid(alpha=0.25, linewidth=0.5)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    with atomic_write(path) as part:
        figure.savefig(part, format="png")


def roc(each: Ranked) -> list[Floats]:
    """The true positive rates of each fold, at 201 false positive rates from 0 to 1."""
    curves = [roc_curve(chance, positive) for chance, positive in each.of_folds()]
    return [np.append(0, np.interp(_GRID[1:], false, true)) for false, true in curves]


def precision_recall(each: Ranked) -> list[Floats]:
    """The precisions of each fold, at 201 recalls from 0 to 1."""
    curves = []
    for chance, positive in each.of_folds():
        true, false = _above(chance, positive)
        place = np.searchsorted(true / true[-1], np.maximum(_GRID, 2e-9) - 1e-9).clip(max=len(true) - 1)
        curves.append((true / (true + false))[place])
    return curves


def calibration(each: Ranked) -> tuple[Floats, Floats, Integers]:
    """Of cases with about the same probability: its mean, the share that is of the class, and their number."""
    bins = np.minimum((each.chance * _BINS).astype(int), _BINS - 1)
    parts = [bins == number for number in np.unique(bins)]
    means, shares = (np.array([values[part].mean() for part in parts]) for values in (each.chance, each.positive))
    return means, shares, np.array([part.sum() for part in parts], np.int64)


def _roc(axes: Axes, ranked: Sequence[Ranked], scores: Mapping[str, Score]) -> None:
    """The mean of the folds' curves, and the spread of their true positive rates."""
    axes.plot([0, 1], [0, 1], color="0.6", linewidth=0.8, linestyle="--")
    for each in ranked:
        _mean_line(axes, roc(each), _label(each.name, scores.get(f"auc_{each.name}"), "AUC"))
    axes.set_xlabel("false positive rate")
    axes.set_ylabel("true positive rate")
    _legend(axes, "lower right")


def _precision_recall(axes: Axes, ranked: Sequence[Ranked], scores: Mapping[str, Score]) -> None:
    for each in ranked:
        _mean_line(axes, precision_recall(each), _label(each.name, scores.get(f"ap_{each.name}"), "AP"))
    axes.set_xlabel("recall")
    axes.set_ylabel("precision")
    _legend(axes, "lower left")


def _calibration(axes: Axes, ranked: Sequence[Ranked], scores: Mapping[str, Score]) -> None:
    """The share of cases of a class among those with about the same probability; larger points are more cases."""
    axes.plot([0, 1], [0, 1], color="0.6", linewidth=0.8, linestyle="--")
    for each in (one for one in ranked if len(one.chance)):
        mean, share, counts = calibration(each)
        (line,) = axes.plot(mean, share, linewidth=1, label=drawable(each.name))
        axes.scatter(mean, share, 8 + 120 * counts / counts.sum(), color=line.get_color(), zorder=3)
    axes.set_xlabel("predicted probability")
    axes.set_ylabel("share of cases")
    _legend(axes, "upper left")


def _legend(axes: Axes, place: Any) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc=place, frameon=False)


def _mean_line(axes: Axes, curves: Sequence[Floats], label: str) -> None:
    if not curves:
        return
    mean = np.mean(curves, axis=0)
    (line,) = axes.plot(_GRID, mean, linewidth=1.4, label=label)
    if len(curves) > 1:
        spread = np.std(curves, axis=0)
        low, high = np.maximum(mean - spread, 0), np.minimum(mean + spread, 1)
        axes.fill_between(_GRID, low, high, color=line.get_color(), alpha=0.15, linewidth=0)


def _label(name: str, score: Score | None, what: str) -> str:
    short = name if len(name) <= 20 else f"{name[:19]}…"
    short = drawable(short)
    return short if score is None else f"{short}, {what} {score.value / 100:.3f}"
