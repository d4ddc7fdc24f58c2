"""Nuclei of H&E-stained tissue as blobs in scale space, without weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

Pixels = npt.NDArray[np.uint8]
Stain = npt.NDArray[np.float32]
Places = npt.NDArray[np.int64]

MPP = 0.5  # µm per pixel, at which cells are found
REACH = 40.0  # µm: what is farther away from a cell does not change it (a multiple of _COARSE pixels)
_AS_IS = 0.03  # pixels whose size differs by less from MPP are not resampled

# Fixed on six images of MoNuSeg, see benchmarks/cells.py. Lengths in µm.
_SMOOTH = 0.25
_AROUND = 8.0  # standard deviation of the surroundings whose mean a nucleus exceeds
_LOCAL = 0.6  # weight of that mean in the threshold; the rest is the threshold of the whole image
_WIDTH = 2.0  # contrasts over which a pixel turns from background to nucleus
_EDGE = 0.5  # standard deviation of the gradient
_STEEP = 0.06, 0.25  # gradients per pixel that count as a full edge, in hematoxylin and in red
_RADII = np.arange(1.5, 7.01, 0.5)  # of nuclei
_DIRECTIONS = np.arange(12) * np.pi / 6
_SCALES = 1.6, 2.3, 3.3  # standard deviations of Laplacians of a Gaussian
_BLOB, _BAND = 0.06, 0.5  # least responses of candidates
_APART = 3.5  # of two candidates that are closer, the less likely one is dropped
_TISSUE = 0.12  # mean optical density above which there is tissue
_INK = 1.6  # times the density of green: hematoxylin absorbs red and green alike, ink red
_FAINTEST = 0.1  # contrast, in optical density of hematoxylin: less is noise
_COARSE = 8  # pixels, for the mean of the surroundings
_BINS = 256
_LIKELY = 0.36  # probability of a nucleus
# Of the bands of hematoxylin and of red, of the density, and of the edges in both (see _edges).
_WEIGHTS = np.array(
    [
        *(4.79, 2.1, -0.174),
        *(3.11, -10.9, -4.09, -0.112, -0.288, -0.441, 1.35, 1.38, -0.181),
        *(6.58, 1.44, 2.32, 0.147, -0.567, -0.0177, -1.4, 0.444, 0.497),
    ]
)
_BIAS = -9.625


@dataclass(frozen=True)
class StainLevels:
    """How strongly nuclei of an image or a slide are stained, in optical density of hematoxylin.

    Args:
        threshold: the density that separates nuclei from the rest (Otsu's, of pixels with tissue).
        contrast: the difference of the mean densities on both sides.
        red: the standard deviation of the optical density of red.
    """

    threshold: float
    contrast: float
    red: float

    @classmethod
    def of(cls, images: Sequence[Pixels]) -> StainLevels | None:
        """The levels of one or several images (H, W, 3) together; None if they show no tissue."""
        from skimage.filters import threshold_otsu

        stained = [(hematoxylin(image), _red(image), _density(image) > _TISSUE) for image in images]
        none = np.zeros(0, np.float32)
        values = np.concatenate([none, *(stain[tissue] for stain, _, tissue in stained)])
        reds = np.concatenate([none, *(red[tissue] for _, red, tissue in stained)])
        if len(values) < 2 or values.min() == values.max():
            return None
        threshold = float(threshold_otsu(values, nbins=_BINS))
        above = values > threshold
        contrast = values[above].mean(dtype=np.float64) - values[~above].mean(dtype=np.float64)
        return cls(threshold, float(contrast), max(float(reds.std(dtype=np.float64)), 0.01))


def find_cells(pixels: Pixels, mpp: float, levels: StainLevels | None = None) -> npt.NDArray[np.float32]:
    """Find the nuclei of stained tissue: places that edges surround, which a logistic function takes for nuclei.

    1. The image is resampled to :data:`MPP`; color deconvolution gives hematoxylin.
    2. Hematoxylin and red are compared with the means of their surroundings.
    3. Candidates are maxima of Laplacians of a Gaussian, and of a sliding band filter.
    4. A logistic function of their edges in twelve directions gives their probability.
    5. Of candidates that are close to each other, the most likely one is a nucleus.

    Args:
        pixels: (H, W, 3) uint8.
        mpp: µm per pixel.
        levels: of the slide that the image is part of; by default of the image itself.

    Returns:
        (N, 2): x, y in pixels of the image, from the upper left corner of its upper left pixel.

    Source: Ruifrok and Johnston, 2001 (color deconvolution); Lindeberg, 1998 (blobs in scale space); Pereira et al.,
    2007 (sliding band filter).
    """
    height, width = pixels.shape[:2]
    image = at_mpp(pixels, mpp)
    levels = levels or StainLevels.of([image])
    if levels is None or levels.contrast < _FAINTEST:
        return np.zeros((0, 2), np.float32)
    points, features = candidates(image, levels)
    kept = most_likely(points, features @ _WEIGHTS + _BIAS)
    return (kept * (width / image.shape[1], height / image.shape[0])).astype(np.float32)


def candidates(image: Pixels, levels: StainLevels) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Places that may be nuclei.

    Args:
        image: (H, W, 3) at :data:`MPP`.
        levels: of its slide.

    Returns:
        (N, 2): x, y in pixels, and (N, 21) what is known of each.
    """
    from scipy import ndimage

    stain, red, density = hematoxylin(image), _red(image), _density(image)
    tissue = density > _TISSUE
    level = (1 - _LOCAL) * levels.threshold + _LOCAL * _surroundings(stain, tissue, levels.threshold)
    soft = np.clip(_smooth((stain - level) / levels.contrast, _SMOOTH) / _WIDTH + 0.5, 0, 1)
    redder = np.clip((red - _surroundings(red, tissue, 0)) / levels.red, -2, 2.5)
    slopes = [np.gradient(_smooth(each, _EDGE)) for each in (soft, redder)]
    bands = [_band(*slope, steep) for slope, steep in zip(slopes, _STEEP, strict=True)]
    blobs = [_laplacian(soft, scale / MPP) for scale in _SCALES]
    peaks = [(_smooth(bands[0] + bands[1], _EDGE), _BAND), *((blob, _BLOB) for blob in blobs)]
    y, x = np.nonzero(np.any([(ndimage.maximum_filter(p, 5) == p) & (p > least) for p, least in peaks], axis=0))
    maps = [*bands, _smooth(density, 1.6)]
    edges = [each for slope, steep in zip(slopes, _STEEP, strict=True) for each in _edges(x, y, *slope, steep)]
    features = [*(each[y, x] for each in maps), *edges]
    return np.stack([x, y], axis=1) + 0.5, np.stack(features, axis=1).astype(np.float64)


def most_likely(points: npt.NDArray[Any], logits: npt.NDArray[Any], least: float = _LIKELY) -> npt.NDArray[Any]:
    """The points (N, 2) of some probability, without those that lie close to a more likely one."""
    from scipy.spatial import cKDTree

    order = np.argsort(-logits, kind="stable")
    points = points[order[logits[order] > np.log(least / (1 - least))]]
    dropped = np.zeros(len(points), np.bool_)
    for number, near in enumerate(cKDTree(points).query_ball_point(points, _APART / MPP) if len(points) else ()):
        if not dropped[number]:
            dropped[[other for other in near if other > number]] = True
    return points[~dropped]


def at_mpp(pixels: Pixels, mpp: float) -> Pixels:
    """An image of ``mpp`` µm per pixel at :data:`MPP`: means of areas if that is coarser, else interpolated."""
    if abs(mpp / MPP - 1) < _AS_IS:
        return pixels
    size = [max(1, round(side * mpp / MPP)) for side in pixels.shape[1::-1]]
    how = Image.Resampling.BOX if mpp < MPP else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(pixels).resize((size[0], size[1]), how))


def hematoxylin(pixels: Pixels) -> Stain:
    """(H, W) the optical density of hematoxylin, not negative; 0 in the blue and green ink that marks margins."""
    tables, densities = _tables(), _logarithms()
    red, green, blue = np.moveaxis(pixels, 2, 0)
    stain = tables[0][red] + tables[1][green] + tables[2][blue]
    ink = densities[red] > _INK * densities[green]
    return np.where(ink, 0, np.maximum(stain, 0))


def _band(down: Stain, across: Stain, steep: float) -> Stain:
    """Sliding band filter: the steepest descent at any radius, as a mean over directions, from -1 to 1."""
    edge = np.hypot(across, down)
    share = np.minimum(edge, steep) / steep / np.maximum(edge, 1e-6)
    most = int(_RADII[-1] / MPP) + 1
    (height, width), total = down.shape, np.zeros_like(down)
    y, x = np.pad(down * share, most), np.pad(across * share, most)
    for angle in _DIRECTIONS:
        descent, best = -(x * np.float32(np.cos(angle)) + y * np.float32(np.sin(angle))), np.full_like(down, -1)
        for row, column in _offsets(angle):
            part = descent[most + row : most + row + height, most + column : most + column + width]
            np.maximum(best, part, out=best)
        total += best
    return total / len(_DIRECTIONS)


def _offsets(angle: float) -> Iterator[tuple[int, int]]:
    """The pixels, down and across, along a direction."""
    for radius in _RADII / MPP:
        yield round(radius * np.sin(angle)), round(radius * np.cos(angle))


def _edges(x: Places, y: Places, down: Stain, across: Stain, steep: float) -> list[Stain]:
    """How clear and how round the edges around each of N places are: numbers (N,)."""
    descents = []
    for angle in _DIRECTIONS:
        at = [_at(x + column, y + row, down) for row, column in _offsets(angle)]
        descents.append([-(across.flat[k] * np.cos(angle) + down.flat[k] * np.sin(angle)) for k in at])
    descent = np.array(descents)  # (directions, radii, N)
    best, radius = np.minimum(descent.max(1), 2 * steep), _RADII[descent.argmax(1)]
    half, ordered = len(_DIRECTIONS) // 2, np.sort(best, 0)
    opposite = np.abs(radius[:half] - radius[half:]).mean(0)
    clear = [(descent[:, number] > steep / 3).mean(0) for number in (1, 3, 5)]
    return [best.mean(0), ordered[1], ordered[3], radius.mean(0), radius.std(0), opposite, *clear]


def _at(x: Places, y: Places, image: Stain) -> Places:
    """Positions in a flat image, of the nearest pixels inside it."""
    height, width = image.shape
    return np.clip(y, 0, height - 1) * width + np.clip(x, 0, width - 1)


def _smooth(image: Stain, scale: float) -> Stain:
    from scipy import ndimage

    found: Stain = ndimage.gaussian_filter(image, scale / MPP, mode="nearest", truncate=3)
    return found


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


def _red(pixels: Pixels) -> Stain:
    """(H, W) the optical density of red, which hematoxylin absorbs most."""
    return _logarithms()[pixels[..., 0]]


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
