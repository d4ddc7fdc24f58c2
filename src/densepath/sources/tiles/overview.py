"""A whole slide reduced to a few µm per pixel, read in parts: its memory does not depend on the stored levels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from densepath.sources.corrupt import CorruptImage
from densepath.sources.slides.slide import Slide
from densepath.sources.slides.tile_codecs import Pixels
from densepath.sources.slides.tile_table import WHITE

MPP = 8.0  # µm per pixel, at most, unless the slide itself is coarser
_PART = 4096  # pixels: side of the parts that are read
_PIECE = 256  # pixels: side of the pieces of a part that is damaged


@dataclass(frozen=True, eq=False)
class Overview:
    """A slide reduced to about 8 µm per pixel.

    Args:
        pixels: (h, w, 3) uint8, the means of squares.
        spacing: µm per pixel along y and x.
        origin: µm from the slide's upper left corner to that of the pixels, along y and x.
        damaged: share of the slide that cannot be read; it is white.
        error: the first reason why; empty without damage.
    """

    pixels: Pixels
    spacing: tuple[float, float]
    origin: tuple[float, float] = (0.0, 0.0)
    damaged: float = 0.0
    error: str = ""


def read_overview(slide: Slide, mpp: float = MPP) -> Overview:
    """Reduce a slide to ``mpp`` µm per pixel, or up to half of that: by whole factors of a stored level.

    Raises:
        CorruptImage: none of it can be read.
        UserError: the slide's µm per pixel are unknown.
    """
    number, scale = slide.nearest(mpp)
    level = slide.levels[number].at(scale)
    own = tuple(mpp * down for mpp, down in zip(slide.mpp, level.downsample, strict=True))
    factor = max(1, int(mpp * 1.03 / max(own)))
    height, width = level.size
    out = np.empty((-(-height // factor), -(-width // factor), 3), np.uint8)
    side = max(1, _PART // factor) * factor
    lost, error = 0, ""
    for top in range(0, height, side):
        for left in range(0, width, side):
            rows, columns = min(side, height - top), min(side, width - left)
            part = np.full((rows, columns, 3), WHITE, np.uint8)
            try:
                part[:] = slide.read(number, (top, left, rows, columns), scale)
            except CorruptImage as first:
                error = error or first.why
                lost += _read_pieces(slide, (number, scale), (top, left), part)
            reduced = _means(part, factor)
            y, x = top // factor, left // factor
            out[y : y + reduced.shape[0], x : x + reduced.shape[1]] = reduced
    if lost == height * width:
        raise CorruptImage(slide.name, error)
    spacing = own[0] * factor, own[1] * factor
    return Overview(out, spacing, (-level.shift * own[0], -level.shift * own[1]), lost / (height * width), error)


def _read_pieces(slide: Slide, level: tuple[int, int], corner: tuple[int, int], part: Pixels) -> int:
    """Read a part that is damaged piece by piece; the number of its pixels that stay white."""
    lost = 0
    for y, x in _pieces(part.shape[0], part.shape[1]):
        piece = part[y : y + _PIECE, x : x + _PIECE]
        try:
            piece[:] = slide.read(level[0], (corner[0] + y, corner[1] + x, *piece.shape[:2]), level[1])
        except CorruptImage:
            lost += piece.shape[0] * piece.shape[1]
    return lost


def _pieces(height: int, width: int) -> Iterator[tuple[int, int]]:
    for y in range(0, height, _PIECE):
        for x in range(0, width, _PIECE):
            yield y, x


def _means(pixels: Pixels, factor: int) -> Pixels:
    """The means of squares, of which the last ones may be cut off."""
    if factor == 1:
        return pixels
    starts = [np.arange(0, length, factor) for length in pixels.shape[:2]]
    sums = np.add.reduceat(pixels, starts[0], axis=0, dtype=np.uint32)
    sums = np.add.reduceat(sums, starts[1], axis=1, dtype=np.uint32)
    high, wide = (np.diff(s, append=length) for s, length in zip(starts, pixels.shape[:2], strict=True))
    count = (high[:, None] * wide[None])[..., None].astype(np.uint32)
    return ((sums + count // 2) // count).astype(np.uint8)
