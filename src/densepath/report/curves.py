"""Charts of measurements: of one run, and of several in the same charts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from densepath.methods.collapse import LEAST
from densepath.report.blocks import Chart
from densepath.report.measurements import Row
from densepath.report.values import plotly_text, pretty
from densepath.runs.closing import CHANCE

_MOST, _FEW = 600, 120  # points of a curve; of each of many
_SMOOTHING = 25  # the running mean of a curve covers 1/25 of its points
_NOT_CURVES = ("step", "epoch")
_TITLES = {"waiting": "share of time waiting for data", "images_per_second": "images per second", "lr": "learning rate"}


def columns_of(runs: Sequence[Sequence[Row]]) -> list[str]:
    """The columns of measurements, in a useful order: losses, those relative to chance, scores, others."""
    found = dict.fromkeys(name for rows in runs for row in rows for name in row if name not in _NOT_CURVES)
    return sorted(found, key=lambda name: (name != "loss", not name.startswith("probe_"), "loss" not in name))


def draw_curves(
    runs: Mapping[str, Sequence[Sequence[Row]]], columns: Sequence[str], coarse: bool = False
) -> list[Chart]:
    """A chart for each column, with a line for each training of a run, and dashed lines for chance and for collapse.

    A loss of which chance is known is drawn relative to chance only. With ``coarse`` curves have few points. Of several
    runs the first chart is wide, and names them.
    """
    shown = [name for name in columns if f"{name}{CHANCE}" not in columns]
    charts = [_chart(runs, name, _FEW if coarse or len(runs) > 4 else _MOST) for name in shown]
    if charts and len(runs) > 1:
        charts[0] = replace(charts[0], layout={**charts[0].layout, "showlegend": True}, wide=True)
    return charts


def _chart(runs: Mapping[str, Sequence[Sequence[Row]]], column: str, most: int) -> Chart:
    traces: list[dict[str, Any]] = []
    for number, (name, trainings) in enumerate(runs.items()):
        measured = [
            [(row["step"], row[column]) for row in rows if column in row and "step" in row] for rows in trainings
        ]
        own = [np.array(each, np.float64) for each in measured if each]
        several: dict[str, Any] = {"legendgroup": str(number), "line": {"width": 1}} if len(own) > 1 else {}
        for points in own:
            smooth = _smoothed(points)
            if len(smooth) < len(points) and len(runs) == 1:
                faint = {"opacity": 0.3, "hoverinfo": "skip"}
                traces.append(_line(_thinned(points, most), plotly_text(name), number) | faint)
            traces.append(_line(_thinned(smooth, most), plotly_text(name), number) | several)
            several = several and several | {"showlegend": False}
    title, level = _TITLES.get(column, column), None
    if column.endswith(CHANCE):
        title, level = f"{column.removesuffix(CHANCE)} / chance", 1.0
    elif column in LEAST:
        level = LEAST[column][0]
        title = f"{column}, dashed: collapse below"
    shapes = [{"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": level, "y1": level}] if level else []
    layout = {"xaxis": {"title": {"text": "step"}}, "shapes": shapes, "showlegend": False}
    return Chart(pretty(title), traces, layout)


def _line(points: np.ndarray, name: str, color: int) -> dict[str, Any]:
    mode = "lines" if len(points) > 1 else "markers"
    return {
        "type": "scatter",
        "mode": mode,
        "name": name,
        "x": points[:, 0].tolist(),
        "y": [float(f"{value:.6g}") for value in points[:, 1]],
        "meta": {"color": color},
        "line": {"width": 2},
        "hovertemplate": "%{y:.4g} at step %{x}<extra>%{fullData.name}</extra>",
    }


def _smoothed(points: np.ndarray) -> np.ndarray:
    """The running mean of points (N, 2)."""
    window = len(points) // _SMOOTHING
    if window < 2:
        return points
    kernel = np.ones(window) / window
    return np.stack([np.convolve(column, kernel, mode="valid") for column in points.T], axis=1)


def _thinned(points: np.ndarray, most: int) -> np.ndarray:
    """At most some of the points (N, 2), among them the first and the last."""
    return points if len(points) <= most else points[np.linspace(0, len(points) - 1, most).round().astype(int)]
