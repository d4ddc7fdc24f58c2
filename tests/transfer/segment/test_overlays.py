"""Overlays of volumes, compared with where their structures are in mm."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from densepath.sources.pixel_source import PixelSpec
from densepath.transfer.segment.legend import Legend
from densepath.transfer.segment.overlays import color_of, draw_case


def test_overlays_of_anisotropic_volumes_are_in_mm(tmp_path: Path) -> None:
    """A cube of 20 mm at the superior, anterior and right end is a square in the upper left corner of each slice."""
    spacing, size = (5.0, 2.0, 1.0), (12, 30, 60)  # 60 mm along each axis
    truth = np.zeros(size, np.uint8)
    truth[-4:, -10:, -20:] = 1
    pixels = np.zeros((*size, 1), np.float32)
    legend = Legend(("no", "cube"), (0, 1), 0, regions=(("cube", (1,)),))
    path = draw_case(
        tmp_path, "a", pixels, PixelSpec.default(1, (0.0, 1.0), ndim=3), truth, truth, legend, [1.0], spacing
    )
    sheet = np.asarray(Image.open(path).convert("RGB"), int)[36:]  # below the caption
    painted = np.abs(sheet - color_of(1, 0)).max(axis=2) < 3  # the outline is in full color
    panels = [painted[:256, k * 262 : k * 262 + 256] for k in range(3)]
    for panel in panels:
        rows, columns = np.nonzero(panel)
        assert rows.min() == columns.min() == 0
        assert abs(rows.max() + 1 - 256 / 3) < 2 and abs(columns.max() + 1 - 256 / 3) < 2
