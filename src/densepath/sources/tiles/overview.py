"""A whole slide reduced to a few µm per pixel, read in parts: its memory does not depend on the stored levels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from densepath.core.waiting import progress
from densepath.sources.corrupt import CorruptImage, can_pass, lasting
from densepath.sources.slides.slide import Slide
from densepath.sources.slides.tile_codecs import Pixels
from densepath.sources.slides.tile_table import WHITE

MPP = 8.0  # µm per pixel, at most, unless the slide itself is coarser or very large
_MOST = 2**24  # pixels of an overview
_PART = 4096  # pixels: side of the parts that are read
_FAILURES = 100  # of a disk, after which it is not asked for more parts; there is a wait before each
_PIECE = 32  # pixels: parts of this side are not divided further if they are damaged


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


def read_overview(slide: Slide, mpp: float = MPP, strict: bool = True) -> Overview:
    """Reduce a slide to ``mpp`` µm per pixel, or up to half of that: by whole factors of a stored level.

    Slides of more than 32 x 32 mm are reduced further, so that memory is bounded.

    Args:
        slide: the slide.
        mpp: µm per pixel.
        strict: raise the error of a disk or a network that fails in a part; if not, the part is white as a damaged one.

    Raises:
        CorruptImage: none of it can be read, or a disk or a network has failed: with ``strict`` once, else in many
            parts.
        UserError: the slide's µm per pixel are unknown.
    """
    area = slide.size[0] * slide.mpp[0] * slide.size[1] * slide.mpp[1]  # µm²
    while area / mpp**2 > _MOST:
        mpp *= 2
    number, scale = slide.nearest(mpp)
    level = slide.levels[number].at(scale)
    own = tuple(mpp * down for mpp, down in zip(slide.mpp, level.downsample, strict=True))
    factor = max(1, int(mpp * 1.03 / max(own)))
    height, width = level.size
    out = np.empty((-(-height // factor), -(-width // factor), 3), np.uint8)
    side = max(1, _PART // factor) * factor
    errors: list[CorruptImage] = []

    def pass_over(error: CorruptImage) -> None:
        many = can_pass(error) and sum(map(can_pass, errors)) >= _FAILURES
        errors.append(lasting(error) if strict or many else error)

    lost = 0
    for top in range(0, height, side):
        for left in range(0, width, side):
            rows, columns = min(side, height - top), min(side, width - left)
            part = np.full((rows, columns, 3), WHITE, np.uint8)
            progress(1)
            lost += _read(slide, (number, scale), top, left, part, pass_over)
            reduced = _means(part, factor)
            y, x = top // factor, left // factor
            out[y : y + reduced.shape[0], x : x + reduced.shape[1]] = reduced
    if lost == height * width:
        raise CorruptImage(slide.name, errors[0].why) from errors[0]
    why = errors[0].why if errors else ""
    spacing = own[0] * factor, own[1] * factor
    origin = -level.shift * own[0], -level.shift * own[1]
    return Overview(out, spacing, origin, lost / (height * width), why)


def _read(
    slide: Slide, level: tuple[int, int], top: int, left: int, part: Pixels, pass_over: Callable[[CorruptImage], None]
) -> int:
    """Read a part, and what is damaged in smaller and smaller parts; the number of pixels that stay white.

    Errors are given to ``pass_over``, which may raise them.
    """
    rows, columns = part.shape[:2]
    try:
        part[:] = slide.read(level[0], (top, left, rows, columns), level[1])
        return 0
    except CorruptImage as error:
        pass_over(error)
        if max(rows, columns) <= _PIECE:
            return rows * columns
    half = 1 << ((max(rows, columns) - 1).bit_length() - 1)  # parts that fit the file's own tiles
    lost = 0
    for y in range(0, rows, half):
        for x in range(0, columns, half):
            lost += _read(slide, level, top + y, left + x, part[y : y + half, x : x + half], pass_over)
    return lost


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
