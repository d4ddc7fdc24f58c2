"""A whole slide: its levels, its resolution in µm per pixel, and parts of it at any of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Real
from operator import index
from typing import Any

import numpy as np

from densepath.core.errors import UserError
from densepath.sources.corrupt import CorruptImage, lasting
from densepath.sources.slides.levels import Level
from densepath.sources.slides.resolution import Spacing
from densepath.sources.slides.slide_file import Box, SlideFile
from densepath.sources.slides.tile_codecs import Pixels
from densepath.sources.slides.tile_table import WHITE

# A level is fine enough for an asked resolution that is finer by no more than this share: 0.5021 for 0.5 µm/px.
_FINER = 0.03

NO_MPP = "no µm per pixel; give them by --mpp_table slides.csv (columns wsi,mpp) or --default_mpp"


@dataclass(frozen=True)
class Region:
    """The pixels that cover a rectangle of a slide, as they are stored.

    Args:
        pixels: (H, W, 3) uint8.
        origin: µm from the slide's upper left corner to that of the pixels, along y and x.
        spacing: µm per pixel along y and x.
    """

    pixels: Pixels
    origin: tuple[float, float]
    spacing: Spacing


@dataclass(frozen=True)
class Slide:
    """A whole slide. It may be used by several threads, and in processes that are forked or get it pickled.

    Args:
        name: the path of the file.
        file: its pixels.
        given: µm per pixel that override those of the file.
    """

    name: str
    file: SlideFile
    given: Spacing | None = None

    @property
    def levels(self) -> Sequence[Level]:
        """The stored resolutions, from the finest to the coarsest."""
        return self.file.levels

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of level 0 in pixels."""
        return self.file.levels[0].size

    @property
    def vendor(self) -> str:
        """The vendor of the scanner, or the file format."""
        return self.file.vendor

    @property
    def spacing(self) -> Spacing | None:
        """µm per pixel of level 0 along y and x; None where unknown."""
        return self.given or self.file.spacing

    @property
    def mpp(self) -> Spacing:
        """µm per pixel of level 0 along y and x.

        Raises:
            UserError: they are unknown.
        """
        if self.spacing is None:
            raise UserError(f"{self.name} has {NO_MPP}")
        return self.spacing

    @property
    def associated(self) -> Sequence[str]:
        """Names of other images in the file. Labels and macros may show the patient's name; nothing stores them."""
        return self.file.associated

    def associated_image(self, name: str) -> Pixels:
        """Another image (H, W, 3) of the file.

        Raises:
            UserError: there is none of that name.
            CorruptImage: it cannot be decoded.
        """
        if name not in self.associated:
            raise UserError(f"{self.name} has no image {name}; it has: {', '.join(self.associated) or 'none'}")
        return self.file.read_associated(name)

    def read(self, level: int, box: Box, scale: int = 1) -> Pixels:
        """Pixels of a level; white outside of the slide.

        Args:
            level: 0 is the finest.
            box: top, left, height, width in pixels of the level reduced by ``scale``.
            scale: one of the level's ``scales``, by which it is reduced while it is decoded.

        Returns:
            (height, width, 3) uint8.

        Raises:
            UserError: the slide has no such level, the level no such scale, the box is not of whole numbers, or its
                size is negative.
            CorruptImage: a tile cannot be decoded.
        """
        top, left, height, width = box = _whole_box(self.name, box)
        if not 0 <= level < len(self.levels):
            raise UserError(f"{self.name} has no level {level}; give one from 0 to {len(self.levels) - 1}")
        if scale not in (scales := self.levels[level].scales):
            raise UserError(
                f"level {level} of {self.name} cannot be reduced by {scale}; it can by {', '.join(map(str, scales))}"
            )
        _check_size(self.name, height, width)
        rows, columns = self.levels[level].at(scale).size
        y0, x0, y1, x1 = max(top, 0), max(left, 0), min(top + height, rows), min(left + width, columns)
        if (y0, x0, y1, x1) == (top, left, top + height, left + width):
            return self.file.read(level, box, scale)
        out = np.full((height, width, 3), WHITE, np.uint8)
        if y0 < y1 and x0 < x1:
            out[y0 - top : y1 - top, x0 - left : x1 - left] = self.file.read(level, (y0, x0, y1 - y0, x1 - x0), scale)
        return out

    def end_problem(self) -> str:
        """What is wrong with the last pixel, which a truncated file lacks; empty if nothing is.

        Raises:
            CorruptImage: a disk or a network has failed.
        """
        height, width = self.size
        try:
            self.read(0, (height - 1, width - 1, 1, 1))
        except CorruptImage as error:
            return lasting(error).why
        return ""

    def nearest(self, mpp: float) -> tuple[int, int]:
        """The level and scale that are read for a resolution: the coarsest that is not coarser, or else the finest.

        Args:
            mpp: µm per pixel.

        Raises:
            UserError: the slide's µm per pixel are unknown, or those asked for are not positive.
        """
        if not (isinstance(mpp, Real) and 0 < mpp < math.inf):
            raise UserError(f"mpp is {mpp}; give µm per pixel, such as 0.5")
        y, x = self.mpp
        choices = [
            (max(y * reduced.downsample[0], x * reduced.downsample[1]), -scale, number)
            for number, level in enumerate(self.levels)
            for scale in level.scales
            for reduced in [level.at(scale)]
        ]
        fine = [choice for choice in choices if choice[0] <= mpp * (1 + _FINER)]
        _, scale, number = max(fine) if fine else min(choices, key=lambda choice: (choice[0], -choice[1]))
        return number, -scale

    def read_um(self, box: tuple[float, float, float, float], mpp: float) -> Region:
        """The stored pixels that cover a rectangle, at the nearest resolution that is not coarser than asked.

        Nothing is resampled: whoever draws the rectangle at exactly ``mpp`` resamples once, from the region's map.

        Args:
            box: top, left, height, width in µm from the upper left corner of the slide.
            mpp: µm per pixel.

        Raises:
            UserError: the slide's µm per pixel are unknown, those asked for are not positive, or the size is negative.
            CorruptImage: a tile cannot be decoded.
        """
        return self.at_mpp(mpp).read_um(box)

    def at_mpp(self, mpp: float) -> SlideLevel:
        """The slide as an image of the nearest resolution that is not coarser. Arguments and errors as above."""
        return SlideLevel(self, *self.nearest(mpp))

    def with_mpp(self, mpp: float | None) -> Slide:
        """The slide with other µm per pixel, or as it is for None."""
        return self if mpp is None else replace(self, given=(mpp, mpp))


@dataclass(frozen=True)
class SlideLevel:
    """A level of a slide as an image that is read in parts, see :class:`densepath.sources.image_reader.ImageReader`.

    Args:
        slide: the slide.
        level: 0 is the finest.
        scale: one of the level's ``scales``.
    """

    slide: Slide
    level: int = 0
    scale: int = 1

    @property
    def name(self) -> str:
        """The slide's path."""
        return self.slide.name

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.slide.levels[self.level].at(self.scale).size

    @property
    def spacing(self) -> Spacing | None:
        """µm per pixel along y and x; None where unknown."""
        if self.slide.spacing is None:
            return None
        (y, x), (down, across) = self.slide.spacing, self.slide.levels[self.level].at(self.scale).downsample
        return y * down, x * across

    def read(self, top: int, left: int, height: int, width: int) -> Pixels:
        """A part (height, width, 3). Raises CorruptImage."""
        return self.slide.read(self.level, (top, left, height, width), self.scale)

    def read_um(self, box: tuple[float, float, float, float]) -> Region:
        """The stored pixels that cover a rectangle in µm, see :meth:`Slide.read_um`."""
        _check_size(self.name, *box[2:])
        if not all(map(math.isfinite, box[:2])):
            raise UserError(f"a part of {self.name} begins at {box[0]}, {box[1]} µm; give finite numbers")
        level = self.slide.levels[self.level].at(self.scale)
        (y, x), (down, across) = self.slide.mpp, level.downsample
        y, x = y * down, x * across
        shift = level.shift
        top, bottom = _covering(box[0] / y + shift, (box[0] + box[2]) / y + shift)
        left, right = _covering(box[1] / x + shift, (box[1] + box[3]) / x + shift)
        pixels = self.read(top, left, bottom - top, right - left)
        return Region(pixels, ((top - shift) * y, (left - shift) * x), (y, x))


def _whole_box(name: str, box: Sequence[Any]) -> Box:
    """A box of plain numbers, which may be those of NumPy."""
    try:
        top, left, height, width = map(index, box)
    except (TypeError, ValueError):
        raise UserError(f"a part of {name} is {box}; give top, left, height and width in whole pixels") from None
    return top, left, height, width


def _check_size(name: str, height: float, width: float) -> None:
    if not (0 <= height < math.inf and 0 <= width < math.inf):
        raise UserError(f"a part of {name} has the height {height} and the width {width}; give sizes of 0 or more")


def _covering(low: float, high: float) -> tuple[int, int]:
    """The pixels that an interval touches; an edge that is a pixel's within rounding is taken for that."""
    first, last = round(low), round(high)
    if abs(first - low) > 1e-4:
        first = int(np.floor(low))
    if abs(last - high) > 1e-4:
        last = int(np.ceil(high))
    return first, max(last, first + 1)
