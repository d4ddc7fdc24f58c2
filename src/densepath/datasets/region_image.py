"""A rectangle of a slide as an image in which only a region is visible."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from densepath.core.geojson import Feature, bounds_of, fill_geometry
from densepath.sources.slides.slide import Slide
from densepath.sources.slides.tile_codecs import Pixels
from densepath.sources.slides.tile_table import WHITE
from densepath.sources.tiles.cutting import cut

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class RegionImage:
    """An image at exactly ``mpp`` µm per pixel.

    Args:
        slide: the slide, whose µm per pixel are known.
        corner: x and y of its upper left corner in pixels of level 0.
        size: height and width in pixels.
        mpp: µm per pixel along both axes.
        region: the region that it shows.
        ignored: areas that it does not show.
    """

    slide: Slide
    corner: tuple[int, int]
    size: tuple[int, int]
    mpp: float
    region: Feature
    ignored: Sequence[Feature]

    @property
    def scale(self) -> tuple[float, float]:
        """Pixels for one of level 0, along x and y."""
        y, x = self.slide.mpp
        return x / self.mpp, y / self.mpp

    @property
    def bounds(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """The least and the largest x, y in pixels of level 0."""
        low = np.array(self.corner, np.float64)
        return low, low + np.array(self.size[::-1]) / self.scale

    def draw(self, geometry: Any) -> tuple[int, int, Mask] | None:
        """Top, left and mask (h, w) of the pixels whose centers lie inside a geometry; None if there are none.

        Raises:
            ValueError: it cannot be drawn, as a phrase for several outlines.
        """
        try:
            return fill_geometry(geometry, *self.size, self.scale, self.corner)
        except ValueError as error:
            if "no pixel" in str(error):
                return None
            raise

    def visible(self) -> Mask:
        """(H, W) the pixels of the region, without ignored areas. Raises ValueError."""
        mask = np.zeros(self.size, np.bool_)
        for shown, features in ((True, [self.region]), (False, self.ignored)):
            for top, left, part in filter(None, (self.draw(each.geometry) for each in features)):
                mask[top : top + part.shape[0], left : left + part.shape[1]][part] = shown
        return mask

    def pixels(self) -> Pixels:
        """(H, W, 3) uint8, white where the region is not visible. Raises CorruptImage."""
        y, x = (place * own for place, own in zip(self.corner[::-1], self.slide.mpp, strict=True))
        pixels = cut(self.slide.at_mpp(self.mpp), (y, x), self.size, self.mpp)
        return np.where(self.visible()[..., None], pixels, np.uint8(WHITE))


def images_of(
    slide: Slide, regions: Iterable[Feature], ignored: Sequence[Feature], mpp: float, size: int
) -> Iterator[tuple[RegionImage, Mask]]:
    """The images that show regions of a slide: the bounds of each, divided into images of at most ``size`` px.

    Yields:
        Each image, and its visible pixels (H, W).

    Raises:
        ValueError: a region cannot be drawn.
    """
    scale = np.array(slide.mpp[::-1]) / mpp
    for region in regions:
        low, high = (np.clip(edge, 0, slide.size[::-1]) for edge in bounds_of(region.geometry))
        first = np.floor(low)
        columns, rows = np.maximum(1, np.floor((high - first) * scale + 0.5)).astype(int).tolist()
        for top, height in _parts(rows, size):
            for left, width in _parts(columns, size):
                x, y = np.rint(first + (left, top) / scale).astype(int).tolist()
                image = RegionImage(slide, (x, y), (height, width), mpp, region, ignored)
                visible = image.visible()
                if visible.any():
                    yield image, visible


def _parts(length: int, most: int) -> Iterator[tuple[int, int]]:
    """Starts and lengths of the fewest parts of nearly equal length."""
    count = -(-length // most)
    edges = [round(k * length / count) for k in range(count + 1)]
    return ((start, end - start) for start, end in pairwise(edges))
