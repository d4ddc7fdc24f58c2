"""Charts of how well probabilities rank images: ROC, precision and recall, calibration, confusion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from densepath.core.errors import counted
from densepath.report.blocks import Chart
from densepath.report.values import plotly_text
from densepath.transfer.probe.curves import Ranked, calibration, precision_recall, roc

_MOST = 12  # classes
_MOST_TEXT = 16  # classes whose numbers are written


def answer_charts(ranked: Sequence[Ranked], what: str) -> list[Chart]:
    """ROC curves, precision over recall, and calibration of the first classes; of images, or ``what`` it is.

    Curves are means over the folds that have images with and without a class.
    """
    roc_lines: list[dict[str, Any]] = []
    recall_lines: list[dict[str, Any]] = []
    calibration_lines: list[dict[str, Any]] = []
    for number, each in enumerate(ranked[:_MOST]):
        name = plotly_text(each.name)
        for lines, curves in ((roc_lines, roc(each)), (recall_lines, precision_recall(each))):
            if curves:
                mean = np.mean(curves, axis=0)
                lines.append(_line(name, np.linspace(0, 1, len(mean)), mean, number))
        if len(each.chance):
            predicted, share, counts = calibration(each)
            line = _line(name, predicted, share, number) | {"mode": "lines+markers"}
            line["marker"] = {"size": (6 + 20 * np.sqrt(counts / counts.sum())).round(1).tolist()}
            line["text"] = [counted(count, what) for count in counts.tolist()]
            calibration_lines.append(line)
    some = f", the first {_MOST} of {len(ranked)} classes" if len(ranked) > _MOST else ""
    diagonal = {**_line("", np.array([0.0, 1.0]), np.array([0.0, 1.0]), -1), "hoverinfo": "skip", "showlegend": False}
    diagonal["line"] = {"width": 1, "dash": "dash"}
    return [
        _square(f"ROC{some}", [diagonal, *roc_lines], "false positive rate", "true positive rate"),
        _square(f"Precision over recall{some}", recall_lines, "recall", "precision"),
        _square(f"Calibration{some}", [diagonal, *calibration_lines], "predicted probability", f"share of {what}s"),
    ]


def confusion_chart(counts: npt.NDArray[np.int64], classes: Sequence[str]) -> Chart:
    """The confusion matrix (K, K): percent of the cases of a class, with their numbers."""
    shares = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    names = [plotly_text(name) for name in classes]
    trace: dict[str, Any] = {
        "type": "heatmap",
        "z": shares.round(2).tolist(),
        "x": names,
        "y": names,
        "customdata": counts.tolist(),
        "zmin": 0,
        "zmax": 100,
        "showscale": False,
        "hovertemplate": "true %{y}, predicted %{x}: %{z:.1f}%, %{customdata}<extra></extra>",
    }
    if len(classes) <= _MOST_TEXT:
        cells = zip(shares.tolist(), counts.tolist(), strict=True)
        trace["text"] = [[f"{share:.0f}%<br>{count:,}" for share, count in zip(*row, strict=True)] for row in cells]
        trace["texttemplate"] = "%{text}"
    layout = {
        "xaxis": {"title": {"text": "predicted"}, "type": "category"},
        "yaxis": {"title": {"text": "true"}, "type": "category", "autorange": "reversed"},
    }
    return Chart("Confusion: percent of the true class", [trace], layout)


def _line(name: str, x: npt.NDArray[Any], y: npt.NDArray[Any], color: int) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines",
        "name": name,
        "x": x.round(4).tolist(),
        "y": y.round(4).tolist(),
        "meta": {"color": color},
        "line": {"width": 2},
    }


def _square(title: str, traces: list[dict[str, Any]], across: str, up: str) -> Chart:
    axes = {
        "xaxis": {"title": {"text": across}, "range": [-0.02, 1.02]},
        "yaxis": {"title": {"text": up}, "range": [-0.02, 1.02]},
    }
    return Chart(title, traces, {**axes, "showlegend": True})
