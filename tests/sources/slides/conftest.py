"""Slides that several tests read."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from densepath.synthetic.tissue import tissue_image

sys.path.insert(0, str(Path(__file__).parent))

from slide_files import (
    APERIO,
    JPEG,
    RGB,
    YCBCR,
    Pixels,
    aperio_tile,
    halves,
    jpeg,
    jpeg_2000,
    tables,
    write_tiles,
)


@pytest.fixture(scope="session")
def tissue() -> Pixels:
    """Tissue (333, 517, 3), sides that no tile divides."""
    return np.ascontiguousarray(tissue_image(5, (333, 517), microns_per_pixel=1.0)[0])


@pytest.fixture(scope="session")
def slides(tissue: Pixels, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Slides of two levels by the name of what is special in them."""
    folder = tmp_path_factory.mktemp("slides")
    levels, aperio = [tissue, halves(tissue, 4)], APERIO.format(mpp="0.4990")

    def ycc(pixels: Pixels) -> bytes:
        return jpeg_2000(np.asarray(Image.fromarray(pixels).convert("YCbCr")), mct=0)

    return {
        "YCbCr": write_tiles(folder / "ycbcr.tiff", levels, lambda x: jpeg(x, subsampling=2), JPEG, YCBCR),
        "RGB without a marker": write_tiles(
            folder / "rgb.svs", levels, aperio_tile, JPEG, RGB, jpeg_tables=tables(), description=aperio
        ),
        "JPEG 2000": write_tiles(folder / "j2k.svs", levels, jpeg_2000, 33005, RGB, description=aperio),
        "JPEG 2000, YCbCr": write_tiles(folder / "ycc.svs", levels, ycc, 33003, RGB, description=aperio),
    }
