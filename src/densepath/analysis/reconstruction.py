"""A picture of what a method predicts for masked patches."""

from __future__ import annotations

from pathlib import Path

import torch

from densepath.analysis.panels import LINES, PanelGrid, save, show
from densepath.analysis.pictures import colors_of
from densepath.methods.base import Reconstruction
from densepath.sources.pixel_source import PixelSpec

_RGB = PixelSpec()
_ROWS = 8  # at most
_TITLES = ("view", "visible", "target", "prediction", "combined")


def draw_reconstruction(made: Reconstruction, path: str | Path, spec: PixelSpec = _RGB, *, panel: float = 1.1) -> Path:
    """Draw views, their visible part, the targets, the predictions, and a combination of the last two.

    Only the first eight views of the batch are drawn. The last column has the prediction where it counts in the loss
    and the target elsewhere, with a line between them.

    Args:
        made: the reconstruction of a batch.
        path: a PNG file.
        spec: how the views are normalized.
        panel: side of a view in inches.
    """
    combined = torch.where(made.counted, made.prediction, made.target)
    columns = [each[:_ROWS] for each in (made.view, made.visible, made.target, made.prediction, combined)]
    grid = PanelGrid(len(columns[0]), len(columns), panel=panel, titles=_TITLES, breaks=(2, 4))
    for row, axes in enumerate(grid.axes):
        for panel_axes, column in zip(axes, columns, strict=True):
            show(panel_axes, colors_of(column[row], spec))
        counted = made.counted[row, 0].cpu().numpy()
        if counted.any() and not counted.all():
            size = counted.shape[0]
            centers = torch.arange(size) + 0.5
            axes[-1].contour(centers, centers, counted, levels=[0.5], colors=LINES[0], linewidths=0.8)
            axes[-1].set_xlim(0, size)
            axes[-1].set_ylim(size, 0)
    return save(grid.figure, path)
