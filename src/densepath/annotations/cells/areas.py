"""What cells are looked for in: a slide or an image, read in blocks at an exact resolution."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from densepath.core.spacing import evenly_spaced
from densepath.sources.corrupt import CorruptImage, lasting
from densepath.sources.slides.slide import Region, Slide

Pixels = npt.NDArray[np.uint8]
Box = tuple[float, float, float, float]  # top, left, height, width in µm
_MARGIN = 4  # pixels around a rectangle, by which resampling sees further
_SAMPLES, _SAMPLE_SIDE = 16, 256.0  # parts of an area, and the largest side of one in µm


class Area(Protocol):
    """A slide or an image.

    Attributes:
        spacing: µm per pixel of level 0 along y and x.
        extent: height and width of level 0 in pixels.
    """

    @property
    def spacing(self) -> tuple[float, float]: ...

    @property
    def extent(self) -> tuple[int, int]: ...

    def read_um(self, box: Box, mpp: float) -> Region:
        """The stored pixels that cover a rectangle, at a resolution not coarser than ``mpp``, or else the finest.

        Raises:
            CorruptImage: they cannot be read.
        """
        ...


@dataclass(frozen=True, eq=False)
class SlideArea:
    """A slide whose µm per pixel are known."""

    slide: Slide

    @property
    def spacing(self) -> tuple[float, float]:
        """µm per pixel of level 0 along y and x."""
        return self.slide.mpp

    @property
    def extent(self) -> tuple[int, int]:
        """Height and width of level 0 in pixels."""
        return self.slide.size

    def read_um(self, box: Box, mpp: float) -> Region:
        """As of the slide."""
        return self.slide.read_um(box, mpp)


@dataclass(frozen=True, eq=False)
class ImageArea:
    """An image (H, W, 3) in memory.

    Args:
        pixels: the image.
        spacing: µm per pixel along y and x.
    """

    pixels: Pixels
    spacing: tuple[float, float]

    @property
    def extent(self) -> tuple[int, int]:
        """Height and width in pixels."""
        height, width = self.pixels.shape[:2]
        return height, width

    def read_um(self, box: Box, mpp: float) -> Region:
        """As of a slide, at the image's own resolution."""
        sides = zip(box[:2], box[2:], self.spacing, self.extent, strict=True)
        spans = [(low / each, (low + side) / each, most) for low, side, each, most in sides]
        rows, columns = (slice(max(0, int(a) - _MARGIN), min(most, int(b) + 1 + _MARGIN)) for a, b, most in spans)
        origin = rows.start * self.spacing[0], columns.start * self.spacing[1]
        return Region(self.pixels[rows, columns], origin, self.spacing)


def side_um(area: Area) -> tuple[float, float]:
    """Height and width of an area in µm."""
    return area.extent[0] * area.spacing[0], area.extent[1] * area.spacing[1]


def read_at(area: Area, box: Box, mpp: float) -> tuple[Pixels, npt.NDArray[np.float64]]:
    """A rectangle of an area at ``mpp`` µm per pixel, resampled once.

    The pixels of two rectangles whose corners are multiples of ``mpp`` are equal where the rectangles overlap.

    Args:
        area: the slide or image.
        box: the rectangle, which lies inside the area.
        mpp: µm per pixel.

    Returns:
        Pixels (h, w, 3), and their exact µm per pixel (2,) along x and y, which differ from ``mpp`` where the sides of
        the rectangle are not multiples of it.

    Raises:
        CorruptImage: it cannot be read.
    """
    region = area.read_um(box, mpp)
    top, left, height, width = box
    size = max(1, round(width / mpp)), max(1, round(height / mpp))
    (y, x), (down, across) = region.origin, region.spacing
    rows, columns = region.pixels.shape[:2]
    edges = (left - x) / across, (top - y) / down, (left + width - x) / across, (top + height - y) / down
    inside = tuple(float(np.clip(round(e, 6), 0, most)) for e, most in zip(edges, (columns, rows) * 2, strict=True))
    finer = (inside[2] - inside[0]) / size[0] >= 1
    how = Image.Resampling.BOX if finer else Image.Resampling.BICUBIC
    made = Image.fromarray(region.pixels).resize(size, how, box=inside)  # type: ignore[arg-type]
    return np.asarray(made), np.array([width / size[0], height / size[1]])


def samples(area: Area, boxes: npt.NDArray[np.float64] | None, mpp: float) -> Iterator[Pixels]:
    """A few parts of an area at ``mpp``, evenly spaced, without those that are damaged.

    Args:
        area: the slide or image.
        boxes: (N, 4) rectangles of it, as those of tiles; None for all of it.
        mpp: µm per pixel.

    Raises:
        CorruptImage: a disk or a network has failed.
    """
    height, width = side_um(area)
    if boxes is None:
        boxes = squares(height, width, _SAMPLE_SIDE)
    boxes = boxes[np.lexsort(boxes.T[1::-1])]  # by top, then left, whatever the order of the tiles in their file
    for place in evenly_spaced(_SAMPLES, len(boxes)):
        top, left, high, wide = boxes[place].tolist()
        top, left = max(top, 0.0), max(left, 0.0)
        box = top, left, min(high, _SAMPLE_SIDE, height - top), min(wide, _SAMPLE_SIDE, width - left)
        try:
            if min(box[2:]) > mpp:
                yield read_at(area, box, mpp)[0]
        except CorruptImage as error:
            lasting(error)


def squares(height: float, width: float, side: float) -> npt.NDArray[np.float64]:
    """The squares (N, 4) that cover a rectangle, those at the end cut off."""
    rows, columns = (np.arange(0, length, side) for length in (height, width))
    top, left = (grid.ravel() for grid in np.meshgrid(rows, columns, indexing="ij"))
    return np.stack([top, left, np.minimum(side, height - top), np.minimum(side, width - left)], axis=1)


def inside_any(points: npt.NDArray[Any], boxes: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Whether points (N, 2) x, y in µm lie in any of the squares (M, 4), which have one size."""
    from scipy.spatial import cKDTree

    if not len(points) or not len(boxes):
        return np.zeros(len(points), np.bool_)
    half = boxes[0, 2] / 2
    distance, _ = cKDTree(boxes[:, 1::-1] + half).query(points, p=np.inf, distance_upper_bound=half * (1 + 1e-9))
    found: npt.NDArray[np.bool_] = np.isfinite(distance)
    return found
