"""Nuclei of H&E-stained tissue as blobs in scale space, without weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
from PIL import Image

Pixels = npt.NDArray[np.uint8]
Stain = npt.NDArray[np.float32]

MPP = 0.5  # µm per pixel, at which cells are found
REACH = 40.0  # µm: what is farther away from a cell does not change it (a multiple of _COARSE pixels)
_AS_IS = 0.03  # pixels whose size differs by less from MPP are not resampled

# Fixed on six images of MoNuSeg, see benchmarks/cells.py. Lengths in µm, areas in µm², contrasts in units of Stain's.
_SMOOTH = 0.25
_AROUND = 8.0  # standard deviation of the surroundings whose mean a nucleus exceeds
_THRESHOLDS = (  # weight of that mean (the rest is the threshold of the whole image), and what is added, in contrasts
    (0.45, -0.1),
    (0.6, 0.0),
    (0.75, 0.1),
)
_WIDTH = 2.0  # contrasts over which a pixel turns from background to nucleus
_OPENING = 0.5
_HOLE = 20.0  # area of the largest hole that is filled: vesicular nuclei are pale inside
_ROUND = 0.6  # weight of the distance from the border, which separates nuclei that touch
_RADIUS = 3.0
_SCALE = 1.9  # standard deviation of the Laplacian of a Gaussian
_APART = 1.0  # of two centers that are closer, only one counts
_RESPONSE = 0.12  # of the Laplacian, normalized by its scale
_SMALLEST = 9.0  # area of a nucleus
_SUREST = 0.58  # least mean of the soft mask over a nucleus: fainter regions are cytoplasm
_TISSUE = 0.12  # mean optical density above which there is tissue
_INK = 1.6  # times the density of green: hematoxylin absorbs red and green alike, ink red
_FAINTEST = 0.1  # contrast, in optical density of hematoxylin: less is noise
_COARSE = 8  # pixels, for the mean of the surroundings
_BINS = 256


@dataclass(frozen=True)
class StainLevels:
    """How strongly nuclei of an image or a slide are stained, in optical density of hematoxylin.

    Args:
        threshold: the density that separates nuclei from the rest (Otsu's, of pixels with tissue).
        contrast: the difference of the mean densities on both sides.
    """

    threshold: float
    contrast: float

    @classmethod
    def of(cls, images: Sequence[Pixels]) -> StainLevels | None:
        """The levels of one or several images (H, W, 3) together; None if they show no tissue."""
        from skimage.filters import threshold_otsu

        stained = [(hematoxylin(image), _density(image) > _TISSUE) for image in images]
        values = np.concatenate([stain[tissue] for stain, tissue in stained]) if stained else np.zeros(0, np.float32)
        if len(values) < 2 or values.min() == values.max():
            return None
        threshold = float(threshold_otsu(values, nbins=_BINS))
        above = values > threshold
        return cls(threshold, float(values[above].mean(dtype=np.float64) - values[~above].mean(dtype=np.float64)))


def find_cells(
    pixels: Pixels, mpp: float | Sequence[float], levels: StainLevels | None = None
) -> npt.NDArray[np.float32]:
    """Find the nuclei of stained tissue: blobs of hematoxylin, with centers between their maxima and their regions'.

    1. The image is resampled to :data:`MPP`; color deconvolution gives hematoxylin.
    2. A soft mask of nuclei: how far a pixel exceeds a threshold, mostly the mean of its surroundings; blended with the
       distance from the border of the mask it has the shape of nuclei. Both are means over three thresholds.
    3. Maxima of the Laplacian of a Gaussian of the shape are nuclei.
    4. A watershed of that response gives each nucleus its region. The point lies halfway between the maximum and the
       region's weighted center, whose errors differ.

    Args:
        pixels: (H, W, 3) uint8.
        mpp: µm per pixel; along y and x, if they differ.
        levels: of the slide that the image is part of; by default of the image itself.

    Returns:
        (N, 2): x, y in pixels of the image, from the upper left corner of its upper left pixel.

    Source: Ruifrok and Johnston, 2001 (color deconvolution); Lindeberg, 1998 (blobs in scale space).
    """
    from scipy import ndimage
    from skimage.segmentation import watershed

    height, width = pixels.shape[:2]
    image = at_mpp(pixels, mpp)
    levels = levels or StainLevels.of([image])
    if levels is None or levels.contrast < _FAINTEST:
        return np.zeros((0, 2), np.float32)
    soft, mask, shape = _soft_mask(image, levels)
    response = _laplacian(shape, _SCALE / MPP)
    peaks = (response == ndimage.maximum_filter(response, footprint=_disk(_APART / MPP))) & (response > _RESPONSE)
    seeds, count = ndimage.label(peaks & mask, np.ones((3, 3)))  # neighbors of equal response are one
    regions = watershed(-response, seeds, mask=mask)
    centers, areas, means = _centers(regions, soft, count)
    points = (centers + _centers(seeds, np.ones_like(soft), count)[0]) / 2
    kept = points[(areas * MPP**2 >= _SMALLEST) & (means >= _SUREST)]
    return (kept * (width / image.shape[1], height / image.shape[0])).astype(np.float32)


def at_mpp(pixels: Pixels, mpp: float | Sequence[float]) -> Pixels:
    """An image of ``mpp`` µm per pixel (or those along y and x) at :data:`MPP`: means of areas if that is coarser along
    an axis, else interpolated."""
    factors = np.broadcast_to(np.asarray(mpp, float) / MPP, 2)
    if (abs(factors - 1) < _AS_IS).all():
        return pixels
    height, width = (max(1, round(side * factor)) for side, factor in zip(pixels.shape, factors, strict=False))
    how = Image.Resampling.BOX if factors.min() < 1 else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(pixels).resize((width, height), how))


def hematoxylin(pixels: Pixels) -> Stain:
    """(H, W) the optical density of hematoxylin, not negative; 0 in the blue and green ink that marks margins."""
    tables, densities = _tables(), _logarithms()
    red, green, blue = np.moveaxis(pixels, 2, 0)
    stain = tables[0][red] + tables[1][green] + tables[2][blue]
    ink = densities[red] > _INK * densities[green]
    return np.where(ink, 0, np.maximum(stain, 0))


def _soft_mask(image: Pixels, levels: StainLevels) -> tuple[Stain, npt.NDArray[np.bool_], Stain]:
    """How surely each pixel belongs to a nucleus, from 0 to 1; the pixels that do; and the shape of nuclei, 0 to 1.

    Means over the thresholds, and their majority: what depends on the choice of one threshold counts less.
    """
    from scipy import ndimage

    stain = hematoxylin(image)
    around = _surroundings(stain, _density(image) > _TISSUE, levels.threshold)
    smooth = ndimage.gaussian_filter(stain, _SMOOTH / MPP)
    sure, inside, votes = np.zeros_like(stain), np.zeros_like(stain), np.zeros(stain.shape, np.uint8)
    for local, added in _THRESHOLDS:
        level = (1 - local) * levels.threshold + local * around
        excess = (smooth - level) / levels.contrast - added
        mask = _clean(excess > 0)
        sure += np.clip(excess / _WIDTH + 0.5, 0, 1)
        inside += np.minimum(ndimage.distance_transform_edt(mask).astype(np.float32) * np.float32(MPP / _RADIUS), 1)
        votes += mask
    number = np.float32(len(_THRESHOLDS))
    soft: Stain = sure / number
    shape: Stain = (1 - _ROUND) * soft + _ROUND * inside / number
    return soft, 2 * votes > len(_THRESHOLDS), shape


def _clean(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """A mask without small holes and thin parts."""
    from scipy import ndimage

    holes, count = ndimage.label(~mask)
    areas = np.bincount(holes.ravel(), minlength=count + 1)
    small = areas * MPP**2 < _HOLE
    small[0] = False
    opened: npt.NDArray[np.bool_] = ndimage.binary_opening(mask | small[holes], _disk(max(1.0, _OPENING / MPP)))
    return opened


def _laplacian(shape: Stain, scale: float) -> Stain:
    """The negative Laplacian of an image at a scale in pixels, normalized by it."""
    from scipy import ndimage

    smooth = np.pad(ndimage.gaussian_filter(shape, scale) * np.float32(scale**2), 1, mode="symmetric")
    around = smooth[:-2, 1:-1] + smooth[2:, 1:-1] + smooth[1:-1, :-2] + smooth[1:-1, 2:]
    found: Stain = 4 * smooth[1:-1, 1:-1] - around
    return found


def _surroundings(stain: Stain, tissue: npt.NDArray[np.bool_], otherwise: float) -> Stain:
    """The mean stain of the tissue around each pixel."""
    from scipy import ndimage

    height, width = stain.shape
    sums = []
    for values in (np.where(tissue, stain, 0), tissue.astype(np.float32)):
        padded = np.pad(values, ((0, -height % _COARSE), (0, -width % _COARSE)))
        means = padded.reshape(padded.shape[0] // _COARSE, _COARSE, -1, _COARSE).mean((1, 3))
        sums.append(ndimage.gaussian_filter(means, _AROUND / MPP / _COARSE, mode="constant", truncate=2.0))
    coarse = np.where(sums[1] > 1e-3, sums[0] / np.maximum(sums[1], 1e-3), otherwise).astype(np.float32)
    wide = Image.fromarray(coarse).resize(
        (coarse.shape[1] * _COARSE, coarse.shape[0] * _COARSE), Image.Resampling.BILINEAR
    )
    return np.asarray(wide)[:height, :width]


def _centers(
    regions: npt.NDArray[np.int32], weights: Stain, count: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """The weighted centers (N, 2) x, y of regions 1 to N in pixels, their areas, and their mean weights."""
    y, x = np.nonzero(regions)
    label, weight = regions[y, x] - 1, weights[y, x] + 1e-6
    total = np.maximum(np.bincount(label, weight, minlength=count), 1e-6)
    centers = [np.bincount(label, weight * (axis + 0.5), minlength=count) / total for axis in (x, y)]
    areas = np.bincount(label, minlength=count)
    return np.stack(centers, axis=1), areas, total / np.maximum(areas, 1)


def _density(pixels: Pixels) -> Stain:
    """(H, W) the mean optical density of the three colors."""
    density: Stain = _logarithms()[pixels].mean(axis=2)
    return density


@cache
def _logarithms() -> Stain:
    """Optical density by the value of a pixel."""
    return -np.log(np.maximum(np.arange(256), 1) / 255).astype(np.float32)


@cache
def _tables() -> Stain:
    """(3, 256): what each color adds to the density of hematoxylin."""
    from skimage.color import hed_from_rgb

    return (hed_from_rgb[:, :1] * _logarithms()).astype(np.float32)


def _disk(radius: float) -> npt.NDArray[np.bool_]:
    side = np.arange(-int(radius), int(radius) + 1)
    return np.hypot(side[:, None], side) <= radius + 0.01
