"""Rectangles of a slide at an exact resolution."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from densepath.sources.slides.slide import SlideLevel
from densepath.sources.slides.tile_codecs import Pixels
from densepath.sources.tiles.resizing import resized

_ROUNDING = 6  # decimals of a pixel; edges that are whole but for rounding are made whole


def cut(level: SlideLevel, corner: Sequence[float], size: tuple[int, int], mpp: float) -> Pixels:
    """A rectangle of a slide at exactly ``mpp`` µm per pixel, resampled once as a tile; white outside of the slide.

    Args:
        level: the slide at the resolution that is read.
        corner: y and x of the upper left corner, in µm from that of the slide.
        size: height and width in pixels of ``mpp``.
        mpp: µm per pixel along both axes.

    Returns:
        (*size, 3) uint8.

    Raises:
        CorruptImage: it cannot be read.
    """
    sides = np.array(size) * mpp
    region = level.read_um((corner[0], corner[1], sides[0], sides[1]))
    stored = region.pixels.shape[:2]
    low = np.round((np.array(corner) - region.origin) / region.spacing, _ROUNDING)
    high = np.round(low + sides / region.spacing, _ROUNDING)
    if stored == size and not low.any() and (high == stored).all():
        return region.pixels
    return resized(region.pixels, low.clip(0).tolist(), high.clip(max=stored).tolist(), size)
