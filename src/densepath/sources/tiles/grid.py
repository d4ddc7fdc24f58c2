"""The grid of a slide's tiles, on the slide's own compression grid where that costs next to no tissue."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from densepath.sources.slides.slide import Slide
from densepath.sources.slides.tiff_slide import TiffSlide
from densepath.sources.tiles.tile_files import boxes_um
from densepath.sources.tiles.tissue import Tissue

_SAME = 1e-6  # pixels of level 0
_AT_ONCE = 2**17  # tiles
# Share of the area that lies between tiles on the compression grid: what is accepted by itself, and if it is asked for.
_UNASKED, _ASKED = 0.03, 0.25


@dataclass(frozen=True)
class Grid:
    """Where the tiles of a slide can lie.

    Args:
        side: height and width of a tile in pixels of level 0.
        step: from a tile to the next one, along y and x.
        aligned: whether no tile crosses a border of the file's own tiles that it need not.
        why: why they are not aligned; empty if they are, or if that is unknown.
    """

    side: tuple[float, float]
    step: tuple[float, float]
    aligned: bool = False
    why: str = ""

    def corners(self, extent: tuple[int, int]) -> Iterator[npt.NDArray[np.int64]]:
        """The corners (N, 2), x and y, of all tiles that lie inside a slide of some height and width, row by row."""
        counts = [
            max(0, math.floor((length - side + _SAME) / step) + 1)
            for length, side, step in zip(extent, self.side, self.step, strict=True)
        ]
        x = np.rint(np.arange(counts[1]) * self.step[1]).astype(np.int64)
        rows = max(1, _AT_ONCE // max(counts[1], 1))
        for first in range(0, counts[0], rows):
            y = np.rint(np.arange(first, min(first + rows, counts[0])) * self.step[0]).astype(np.int64)
            yield np.stack([np.tile(x, len(y)), np.repeat(y, len(x))], axis=1)


def grid_of(slide: Slide, mpp: float, size: int, overlap: int = 0, align: bool = False) -> Grid:
    """The grid of tiles of a slide.

    A tile that has the borders of the file's own tiles is decoded once instead of about 3.5 times. Tiles keep their
    size; where they are a little smaller than those of the file, they are put at the file's corners, and the few pixels
    between them are lost.

    Args:
        slide: the slide.
        mpp: µm per pixel of a tile.
        size: side of a tile in pixels.
        overlap: pixels by which neighbors overlap.
        align: accept that up to a quarter of the tissue lies between the tiles, instead of 3%.

    Raises:
        UserError: the slide's µm per pixel are unknown.
    """
    sides = [size * mpp / own for own in slide.mpp]
    steps = [(size - overlap) * mpp / own for own in slide.mpp]
    plain = (sides[0], sides[1]), (steps[0], steps[1])
    stored = _stored(slide, mpp)
    if stored is None:
        return Grid(*plain, why="the file's own tiles are not known")
    if overlap:
        return Grid(*plain, why="tiles that overlap cross those of the file")
    most = _ASKED if align else _UNASKED
    if _lost(stored, sides) <= most:
        return Grid(plain[0], (_on(stored[0], sides[0]), _on(stored[1], sides[1])), aligned=True)
    own, asked = (f"{pair[1]:.6g} x {pair[0]:.6g}" for pair in (stored, sides))
    fitting = math.floor(min(map(_fitting, stored, sides, slide.mpp)) / mpp + _SAME)
    does = f"; --size {fitting} does" if _lost(stored, [fitting * mpp / one for one in slide.mpp]) <= most else ""
    return Grid(*plain, why=f"{asked} px of level 0 do not fit the file's tiles of {own} px{does}")


def _fitting(stored: float, side: float, mpp: float) -> float:
    """The side in µm of the tiles nearest to those asked for that fit a compression grid."""
    return mpp * (stored / round(stored / side) if side <= stored else stored * round(side / stored))


def _stored(slide: Slide, mpp: float) -> tuple[float, float] | None:
    """Height and width in pixels of level 0 of the tiles that are decoded; None where they are unknown or cut."""
    number, scale = slide.nearest(mpp)
    level = slide.levels[number]
    whole = all(step == round(step) for step in level.downsample)
    if not isinstance(slide.file, TiffSlide) or not whole or level.at(scale).shift:
        return None
    form = slide.file.tables[number].format
    return form.height * level.downsample[0], form.width * level.downsample[1]


def _lost(stored: Sequence[float], sides: Sequence[float]) -> float:
    """The share of the area that lies between tiles on a compression grid."""
    return 1 - math.prod(sides) / math.prod(map(_on, stored, sides))


def _on(stored: float, side: float) -> float:
    """The step of tiles on a compression grid: several in a tile of the file, or one over several of them."""
    inside = math.floor(stored / side + _SAME)
    while inside > 1 and stored % inside:  # corners are whole pixels
        inside -= 1
    return stored / inside if inside else math.ceil(side / stored - _SAME) * stored


def tiles_with_tissue(
    tissue: Tissue, slide: Slide, grid: Grid, size_um: float, least: float
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """The corners (N, 2) of the tiles of ``size_um`` with at least a share of tissue, and that share (N,)."""
    corners, shares = [np.empty((0, 2), np.int64)], [np.empty(0)]
    for some in grid.corners(slide.size):
        share = tissue.share(boxes_um(some, slide.mpp, size_um))
        kept = (share >= least) & (share > _SAME)
        corners.append(some[kept])
        shares.append(share[kept])
    return np.concatenate(corners), np.concatenate(shares)
