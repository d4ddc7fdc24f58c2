"""Tiles are resized as Pillow does it in floating point, and rounded once."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from densepath.sources.tiles.resizing import resized


@pytest.mark.parametrize(
    ("shape", "start", "end", "size"),
    [
        ((257, 257), (0.25, 0.125), (256.25, 256.125), 224),  # Pillow takes the numbers as float32
        ((300, 500), (0, 0), (300, 500), 61),  # shrunk, by different factors
        ((40, 30), (3.75, 2), (33.125, 29.875), 225),  # enlarged
        ((9, 9), (0, 0), (9, 9), 9),
        ((300, 200), (1.5, 3), (290, 199.5), (97, 130)),
        ((5, 700), (1.5, 0.25), (2.25, 700), 13),  # less than a pixel high
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_it_is_the_bicubic_filter_rounded_once(shape, start, end, size, channels):
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, channels), dtype=np.uint8)
    given = pixels.copy()
    height, width = size if isinstance(size, tuple) else (size, size)
    found = resized(pixels, start, end, (height, width))
    box = (start[1], start[0], end[1], end[0])
    exact = [
        np.asarray(Image.fromarray(pixels[..., k].astype(np.float32)).resize((width, height), 3, box))
        for k in range(channels)
    ]
    assert found.dtype == np.uint8 and found.shape == (height, width, channels)
    assert np.abs(found - np.stack(exact, -1).clip(0, 255)).max() <= 0.5 + 1e-3
    assert np.array_equal(pixels, given)


def test_whole_pixels_stay_as_they_are():
    pixels = np.random.default_rng(0).integers(0, 256, (70, 80, 3), dtype=np.uint8)
    assert np.array_equal(resized(pixels, (3, 5), (63, 65), (60, 60)), pixels[3:63, 5:65])
