"""A sheet of what a method predicts where it does not see."""

from __future__ import annotations

from pathlib import Path

import torch

from densepath.analysis.panels import LINES, Sheet, save, show
from densepath.analysis.pictures import colors_of
from densepath.methods.base import Reconstruction
from densepath.sources.pixel_source import PixelSpec

_RGB = PixelSpec()
_TITLES = ("view", "visible", "target", "prediction", "put together")


def draw_reconstruction(made: Reconstruction, path: str | Path, spec: PixelSpec = _RGB, *, panel: float = 1.1) -> Path:
    """Draw views, what is visible of them, the targets, what is predicted, and both put together.

    The last column has the prediction where the loss counts it and the target elsewhere; a line runs between the two.

    Args:
        made: what a method predicts for a batch.
        path: a PNG file.
        spec: how the views are normalized.
        panel: side of a view in inches.
    """
    together = torch.where(made.counted, made.prediction, made.target)
    columns = (made.view, made.visible, made.target, made.prediction, together)
    sheet = Sheet(len(made.view), len(columns), panel=panel, titles=_TITLES, breaks=(2, 4))
    for row, axes in enumerate(sheet.axes):
        for panel_axes, column in zip(axes, columns, strict=True):
            show(panel_axes, colors_of(column[row], spec))
        counted = made.counted[row, 0].cpu().numpy()
        if counted.any() and not counted.all():
            size = counted.shape[0]
            centers = torch.arange(size) + 0.5
            axes[-1].contour(centers, centers, counted, levels=[0.5], colors=LINES[0], linewidths=0.8)
            axes[-1].set_xlim(0, size)
            axes[-1].set_ylim(size, 0)
    return save(sheet.figure, path)
