"""Where the tissue of a slide is: by classical image processing of an overview, the same on every machine."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

from densepath.core.polygons import Ring, polygons_of
from densepath.sources.slides.slide import Slide
from densepath.sources.slides.tile_codecs import Pixels
from densepath.sources.tiles.overview import Overview, read_overview

Holes = Literal["keep", "fill"]
Pen = Literal["drop", "keep"]
Mask = npt.NDArray[np.bool_]

# Optical densities (natural logarithm) of pixels of 8 µm; chosen by eye on H&E and on painted slides.
_COLORED = (0.035, 0.07)  # range of the threshold between glass and tissue, of the spread of the channels
_NEUTRAL = 0.25  # spread of the channels by their mean: less is ink, shadow, dust or padding, and not a stain
_OFFSET = 8.0  # grey levels, so that noise in black pixels has no color
_SMOOTH, _CLOSED = 10.0, 16.0  # µm
_SAMPLE = 2**17  # values of pixels that the color of the glass is taken from
_PADDING, _GLASS, _DARKEST_GLASS, _BRIGHT = 253, 245.0, 120, 40.0  # grey levels
_PART, _HOLE = 0.03, 0.02  # mm²: smaller parts and smaller holes are not kept
_STROKE = 40.0  # µm: the least width of a pen's stroke
_FRINGE = 40.0  # µm: the blurred border of a stroke
_BLACK = 0.8  # mean density of black borders and black ink
_TEXTURE = 0.1  # local contrast of density: ink has less, also over tissue; H&E has medians of 0.24 to 0.42


@dataclass(frozen=True, eq=False)
class Tissue:
    """The tissue of a slide.

    Args:
        mask: (h, w) bool.
        spacing: µm of a pixel of the mask along y and x.
        origin: µm from the slide's upper left corner to that of the mask, along y and x.
        overview: the slide at the resolution of the mask.
    """

    mask: Mask
    spacing: tuple[float, float]
    origin: tuple[float, float]
    overview: Overview

    @property
    def mm2(self) -> float:
        """The area of the tissue in mm²."""
        return float(self.mask.sum()) * self.spacing[0] * self.spacing[1] * 1e-6

    def share(self, boxes_um: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """The share of tissue (B,) in rectangles, exactly that of the mask; what is outside of the slide is not tissue.

        Args:
            boxes_um: (B, 4): top, left, height, width in µm.
        """
        top, left, height, width = np.asarray(boxes_um, np.float64).reshape(-1, 4).T
        y = [(edge - self.origin[0]) / self.spacing[0] for edge in (top, top + height)]
        x = [(edge - self.origin[1]) / self.spacing[1] for edge in (left, left + width)]
        area = sum(sign * self._sum(y[row], x[column]) for sign, row, column in _CORNERS)
        return np.clip(area / ((y[1] - y[0]) * (x[1] - x[0])), 0, 1)

    @cached_property
    def _table(self) -> npt.NDArray[np.int32]:
        """The number of the mask's pixels above and left of each corner of its pixels."""
        table = np.pad(self.mask, ((1, 0), (1, 0))).cumsum(axis=1, dtype=np.int32)
        for above, row in pairwise(table):  # three times as fast as NumPy along the first axis
            row += above
        return table

    def _sum(self, y: npt.NDArray[np.float64], x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """The area of the tissue above and left of places, in pixels of the mask and their fractions."""
        table = self._table
        rows, columns = self.mask.shape
        y, x = y.clip(0, rows), x.clip(0, columns)
        i, j = np.minimum(y.astype(np.int64), rows - 1), np.minimum(x.astype(np.int64), columns - 1)
        v, u = y - i, x - j
        above = table[i, j] * (1 - u) + table[i, j + 1] * u
        below = table[i + 1, j] * (1 - u) + table[i + 1, j + 1] * u
        return above * (1 - v) + below * v

    def outlines(self) -> list[list[Ring]]:
        """Polygons, each with its outline first and then its holes: rings (N, 2) of x, y in µm."""
        scale, shift = np.array(self.spacing[::-1]), np.array(self.origin[::-1])
        return [[ring * scale + shift for ring in rings] for rings in polygons_of(self.mask)]


_CORNERS = ((1, 1, 1), (-1, 0, 1), (-1, 1, 0), (1, 0, 0))  # sign, lower edge, right edge


def find_tissue(slide: Slide, *, holes: Holes = "keep", pen: Pen = "drop") -> Tissue:
    """Find the tissue of a slide at about 8 µm per pixel, in bounded memory.

    Args:
        slide: the slide.
        holes: "keep" holes larger than 0.02 mm², or "fill" all.
        pen: whether marks of a pen are left out ("drop") or may count as tissue ("keep").

    Raises:
        CorruptImage: the slide cannot be read.
        UserError: the slide's µm per pixel are unknown.
    """
    overview = read_overview(slide)
    mask = tissue_mask(overview.pixels, sum(overview.spacing) / 2, holes=holes, pen=pen)
    return Tissue(mask, overview.spacing, overview.origin, overview)


def tissue_mask(pixels: Pixels, mpp: float, *, holes: Holes = "keep", pen: Pen = "drop") -> Mask:
    """The tissue (h, w) in an overview.

    Stains absorb some colors more than others: a pixel is tissue if the optical density of its channels, compared to
    the slide's own glass, differs by more than a threshold (Otsu's, within bounds, so that an empty slide stays
    empty). Shadows, dust, black borders and black ink absorb all colors alike, and colored inks other colors than
    stains do, and are smooth. Small parts and holes are not kept.

    Args:
        pixels: (h, w, 3).
        mpp: µm per pixel.
        holes, pen: as for :func:`find_tissue`.
    """
    glass = glass_color(pixels)
    lookup = np.log((glass[:, None] + _OFFSET) / (np.arange(256, dtype=np.float32) + _OFFSET)).astype(np.float32)
    density = np.empty((3, *pixels.shape[:2]), np.float32)
    for channel in range(3):
        lookup[channel].take(pixels[..., channel], out=density[channel], mode="clip")
    found = _stained(density, mpp)
    unlike, mean = _spread(density), _mean(density)
    marks = (mean > _BLACK) & (unlike < _NEUTRAL * mean)  # black borders and black ink
    foreign = _strokes(marks if pen == "keep" else marks | _ink(density, unlike), mean, mpp)
    closed = _square_filter(np.logical_or, np.pad(found & ~foreign, 2), _CLOSED / mpp)
    closed = _square_filter(np.logical_and, closed, _CLOSED / mpp)[2:-2, 2:-2]
    found = _without_small(closed & ~foreign, _PART * 1e6 / mpp**2)
    outside = _parts(np.pad(~found, 1, constant_values=True))  # the border is outside, the others are holes
    largest = np.inf if holes == "fill" else _HOLE * 1e6 / mpp**2
    filled = np.bincount(outside.ravel()) < largest
    filled[outside[0, 0]] = False
    mask: Mask = found | (filled[outside[1:-1, 1:-1]] & ~foreign & ~found)
    return mask


def glass_color(pixels: Pixels) -> npt.NDArray[np.float32]:
    """The color (3,) of glass without tissue: the most frequent one among the brightest pixels, without padding."""
    flat = pixels.reshape(-1, 3)[:: max(1, pixels.size // _SAMPLE)]
    flat = flat[flat.min(axis=1) < _PADDING]
    if not len(flat):
        return np.full(3, _GLASS, np.float32)
    light = flat.mean(axis=1, dtype=np.float32)
    bright = light > np.percentile(light, 99.5) - _BRIGHT
    counts = np.bincount(light[bright].astype(np.int64), minlength=256).astype(np.float32)
    usual_light = ndimage.gaussian_filter1d(counts, 2.0).argmax() + 0.5
    color = np.median(flat[bright & (np.abs(light - usual_light) < 4)], axis=0).astype(np.float32)
    usual = color.min() >= _DARKEST_GLASS and np.ptp(color) <= _BRIGHT
    return color if usual else np.full(3, _GLASS, np.float32)


def _stained(density: npt.NDArray[np.float32], mpp: float) -> Mask:
    """Where the smoothed density differs between the channels: at half the resolution, which the smoothing leaves."""
    height, width = density.shape[1:]
    if height % 2 or width % 2:
        density = np.pad(density, ((0, 0), (0, height % 2), (0, width % 2)), mode="edge")
    rows = density[:, ::2] + density[:, 1::2]
    half = (rows[..., ::2] + rows[..., 1::2]) / np.float32(4)
    sigma = np.sqrt(max((_SMOOTH / mpp) ** 2 - 0.25, 0)) / 2  # the means of squares have smoothed by half a pixel
    smooth = np.stack([ndimage.gaussian_filter(each, sigma, truncate=2.5) for each in half])
    spread = _spread(smooth)
    excess = np.minimum(spread - np.maximum(_threshold(spread), _NEUTRAL * _mean(smooth)), smooth[1])
    whole = Image.fromarray(excess).resize(density.shape[:0:-1], Image.Resampling.BILINEAR)
    return np.asarray(whole)[:height, :width] > 0


def _threshold(spread: npt.NDArray[np.float32]) -> float:
    from skimage.filters import threshold_otsu

    clipped = spread.clip(0, 1)
    otsu = float(threshold_otsu(clipped)) if clipped.max() > clipped.min() else 0.0
    return min(max(otsu / 2, _COLORED[0]), _COLORED[1])


def _spread(density: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """By how much the channels (3, h, w) differ; faster than NumPy along the first axis."""
    red, green, blue = density
    return np.maximum(np.maximum(red, green), blue) - np.minimum(np.minimum(red, green), blue)


def _mean(density: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The mean of the channels (3, h, w); faster than NumPy along the first axis."""
    red, green, blue = density
    return (red + green + blue) / np.float32(3)


def _ink(density: npt.NDArray[np.float32], spread: npt.NDArray[np.float32]) -> Mask:
    """Colors that stains do not have: they absorb green most, or nearly as much as another color."""
    red, green, blue = density
    least = np.minimum(red, blue)
    greenish = (green < 0.95 * least) & (least > green + 0.05)  # also over tissue
    cool = (spread > 0.15) & (green < 0.7 * red)  # green, cyan, light blue
    dark_blue = (spread > 0.6) & (green < 0.9 * red) & (blue < 0.6 * red)
    yellow = (spread > 0.15) & (green < 0.35 * blue)
    bright_red = (green > 0.4) & (red < 0.12 * green) & (blue > 0.85 * green)
    ink: Mask = greenish | cool | dark_blue | yellow | bright_red
    return ink


def _strokes(marks: Mask, mean: npt.NDArray[np.float32], mpp: float) -> Mask:
    """The marks that are as wide as a pen's stroke somewhere, and smooth, with their blurred borders.

    Tissue is not smooth: blood, pigment, and blue or green collagen in other stains than H&E have the colors of inks.
    """
    core = _square_filter(np.logical_and, marks, _STROKE / mpp)
    if not core.any():
        return core
    near = ndimage.uniform_filter(mean, 3)
    contrast = np.sqrt(np.maximum(ndimage.uniform_filter(mean * mean, 3) - near * near, 0)) / np.maximum(near, 0.05)
    labels, count = ndimage.label(marks, np.ones((3, 3)))
    wide = np.unique(labels[core])
    smooth = np.zeros(count + 1, bool)
    smooth[wide] = np.asarray(ndimage.median(contrast[core], labels[core], wide)) < _TEXTURE
    return _square_filter(np.logical_or, smooth[labels], 2 * _FRINGE / mpp)


def _square_filter(combine: np.ufunc, mask: Mask, side: float) -> Mask:
    """All (``np.logical_and``) or any (``or``) of squares of about some pixels; nothing is marked outside."""
    reach = max(0, round(side / 2))
    for axis in (0, 1):
        window = np.pad(mask, [(reach, reach) if each == axis else (0, 0) for each in (0, 1)]).swapaxes(0, axis)
        length = 1  # of the windows, each combined from two shorter ones
        while length < 2 * reach + 1:
            step = min(length, 2 * reach + 1 - length)
            window = combine(window[:-step], window[step:])
            length += step
        mask = window.swapaxes(0, axis)
    return mask


def _without_small(mask: Mask, least: float) -> Mask:
    """A mask without its connected parts of fewer pixels."""
    labels = _parts(mask)
    kept = np.bincount(labels.ravel()) >= least
    kept[0] = False
    large: Mask = kept[labels]
    return large


def _parts(mask: Mask) -> npt.NDArray[np.intp]:
    """The connected parts of a mask, numbered from 1, as the integers that NumPy counts and indexes by."""
    labels = np.empty(mask.shape, np.intp)
    ndimage.label(mask, output=labels)
    return labels
