"""Overlays of volumes, compared with where their structures are in mm."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from densepath.sources.pixel_source import PixelSpec
from densepath.transfer.segment.legend import IGNORED, Legend
from densepath.transfer.segment.overlays import color_of, draw_case


def test_all_classes_in_a_picture_are_in_its_legend_in_a_color_each(tmp_path: Path) -> None:
    """Also the ignored pixels, and none that is not there."""
    count = 12
    legend = Legend(("no", *(f"organ number {k}" for k in range(count))), tuple(range(count + 1)), 0)
    truth = np.resize(np.arange(count), (60, 60)).astype(np.uint8)
    truth[:, 0] = IGNORED
    path = draw_case(tmp_path, "a", np.zeros((60, 60, 3), np.uint8), PixelSpec(), truth, truth, legend)
    sheet = np.asarray(Image.open(path))
    above = {tuple(color) for color in sheet[: -60 * 4 - 6].reshape(-1, 3).tolist()}
    colors = [color_of(k, 0) for k in (*range(1, count + 1), IGNORED)]
    assert len(set(colors)) == count + 1
    assert [color in above for color in colors] == [True] * (count - 1) + [False, True]


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
