"""Heat maps of slides: values of rectangles as a pyramidal TIFF with its µm per pixel, and over the slide's picture."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile
from matplotlib import colormaps
from PIL import Image

from densepath.core.errors import UserError
from densepath.core.files import atomic_write
from densepath.core.single_values import take_single_values
from densepath.sources.slides.slide import Slide
from densepath.transfer.slides.overview import framed, slide_picture

COLORS = "viridis"
_ACROSS = 32  # pixels of the map for the side of a rectangle
_LONGEST = 2048  # pixels of a side of the map: bounds its memory
_SMALLEST = 64  # pixels: no level of the pyramid is smaller
_SQUARE = 250.0  # µm: about the side of the rectangles in which points are counted
_LEAST_TISSUE = 0.05  # share of a rectangle without points, below which it has no density
_TILE = 256
_NOTHING = 255  # where there is no value: white


@dataclass(frozen=True, eq=False)
class HeatMap:
    """Values on a grid that covers a slide.

    Args:
        values: (H, W, C) float32: the mean of the rectangles that cover a pixel, by area; NaN where there are none.
        step: pixels of level 0 for one of the map.
        spacing: µm per pixel of the map along y and x.
    """

    values: npt.NDArray[np.float32]
    step: int
    spacing: tuple[float, float]


@take_single_values
def write_heat_map(
    path: str | Path,
    slide: Slide,
    boxes: npt.ArrayLike,
    values: npt.ArrayLike,
    *,
    label: str = "",
    limits: tuple[float, float] | None = None,
) -> tuple[Path, Path]:
    """Write the values of rectangles on a slide: tiles with scores or attention, squares with densities.

    The TIFF is an OME-TIFF pyramid of colors that QuPath, OpenSlide and :func:`densepath.open_slide` read with
    its µm per pixel; it covers the slide from its upper left corner, and is white where there is no value. The PNG is
    the slide with the colors on it, a scale bar and a color bar.

    Args:
        path: of the files, without their suffixes .tif and .png.
        slide: the slide.
        boxes: (N, 4) top, left, height, width in µm, as ``Slide.read_um`` takes them. Where they overlap, the map has
            their mean.
        values: (N,) numbers, or (N, 3) red, green and blue from 0 to 1. NaN is no value.
        label: what the values are, with their unit.
        limits: the values with the first and the last color; by default those of the values.

    Returns:
        The TIFF and the PNG.

    Raises:
        UserError: the slide's µm per pixel are unknown.
    """
    return write_map(path, slide, heat_map(slide, boxes, values), label=label, limits=limits)


def files_of_map(path: str | Path) -> tuple[Path, Path]:
    """The TIFF and the PNG of a map, by their path without suffixes."""
    path = Path(path)
    return path.with_name(f"{path.name}.tif"), path.with_name(f"{path.name}.png")


def write_map(
    path: str | Path, slide: Slide, found: HeatMap, *, label: str = "", limits: tuple[float, float] | None = None
) -> tuple[Path, Path]:
    """Write a map of a slide. Files, arguments and errors as for :func:`write_heat_map`."""
    tiff, png = files_of_map(path)
    colored = found.values.shape[2] == 3
    if limits is None and not colored:
        known = found.values[np.isfinite(found.values)]
        limits = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
    levels = [_colors(each, limits) for each in _pyramid(found.values)]
    with atomic_write(tiff) as part:
        _write_pyramid(part, levels, found.spacing, label, limits)
    with atomic_write(png) as part:
        _over_slide(slide, found, levels[0], label, limits).save(part, format="PNG", compress_level=1)
    return tiff, png


def write_density(
    path: str | Path,
    slide: Slide,
    points: npt.ArrayLike,
    share: Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]] | None = None,
) -> tuple[Path, Path]:
    """Write a heat map of the number of points per mm², counted in rectangles of about 250 µm that divide the slide
    evenly. The files and errors are those of :func:`write_heat_map`.

    Args:
        path: of the files, without suffixes.
        slide: the slide.
        points: (N, 2) y, x in µm.
        share: the share of tissue (B,) in rectangles (B, 4) in µm: those with less than 5% and without points have no
            value. By default all have one.
    """
    extent = [length * mpp for length, mpp in zip(slide.size, slide.mpp, strict=True)]
    shape = [max(1, round(length / _SQUARE)) for length in extent]
    sides = np.divide(extent, shape)
    places = (np.asarray(points, np.float64).reshape(-1, 2) // sides).astype(np.int64)
    rows, columns = (places[:, axis].clip(0, shape[axis] - 1) for axis in (0, 1))
    counts = np.bincount(rows * shape[1] + columns, minlength=shape[0] * shape[1])
    corners = np.indices(shape).reshape(2, -1).T * sides
    boxes = np.concatenate([corners, np.broadcast_to(sides, corners.shape)], axis=1)
    density = counts / (sides.prod() / 1e6)
    if share is not None:
        density[(counts == 0) & (share(boxes) < _LEAST_TISSUE)] = np.nan
    highest = float(np.nanmax(density, initial=0.0))
    return write_heat_map(path, slide, boxes, density, label="objects per mm²", limits=(0.0, highest or 1.0))


def heat_map(slide: Slide, boxes: npt.ArrayLike, values: npt.ArrayLike) -> HeatMap:
    """The map of rectangles on a slide. Arguments and errors as for :func:`write_heat_map`.

    Its pixels are a whole number of those of level 0, about a 32nd of a rectangle's side, and at most 2048 along the
    longer side of the slide.
    """
    edges, colors = np.asarray(boxes, np.float64).reshape(-1, 4), np.asarray(values, np.float32)
    colors = colors.reshape(len(colors), -1 if len(colors) else 1)
    if len(colors) != len(edges) or colors.shape[1] not in (1, 3):
        raise UserError(f"a heat map of {len(edges)} rectangles needs a value or a color for each, not {colors.shape}")
    kept = np.isfinite(colors).all(1)
    edges, colors = edges[kept], colors[kept]
    side = float(edges[:, 2:].min()) if len(edges) else max(slide.mpp)
    found = GrowingMap(slide, side, colors.shape[1])
    found.add(edges, colors)
    return found.done()


class GrowingMap:
    """A map that gets its rectangles in parts, and keeps none of them.

    Args:
        slide: the slide.
        side: the shortest side of a rectangle in µm.
        channels: numbers of a rectangle.
    """

    def __init__(self, slide: Slide, side: float, channels: int = 1) -> None:
        self._step = step = max(1, int(side / _ACROSS / max(slide.mpp)), -(-max(slide.size) // _LONGEST))
        self._spacing = slide.mpp[0] * step, slide.mpp[1] * step
        self._slide, self._side = slide, side
        shape = [-(-length // step) for length in slide.size]
        self._total, self._weight = np.zeros((*shape, channels), np.float32), np.zeros(shape, np.float32)

    def add(self, boxes: npt.NDArray[np.float64], values: npt.NDArray[np.float32]) -> None:
        """Add rectangles (N, 4) in µm with finite values (N, C)."""
        height, width = self._weight.shape
        edges = boxes / np.array([*self._spacing, *self._spacing])
        for (top, left, high, wide), value in zip(edges, values, strict=True):
            rows, y = _covered(top, top + high, height)
            columns, x = _covered(left, left + wide, width)
            area = y[:, None] * x
            self._weight[rows, columns] += area
            self._total[rows, columns] += area[..., None] * value

    def done(self) -> HeatMap:
        """The map; it takes no more rectangles."""
        inside = [np.minimum(1, n / self._step - np.arange(-(-n // self._step))) for n in self._slide.size]
        own = self._side**2 / (self._spacing[0] * self._spacing[1])
        least = 0.5 * np.minimum(np.outer(*inside), own)  # of a pixel, or of a rectangle
        self._total /= np.where(self._weight < least, np.nan, self._weight)[..., None]
        return HeatMap(self._total, self._step, self._spacing)


def _covered(low: float, high: float, length: int) -> tuple[slice, npt.NDArray[np.float32]]:
    """The pixels that an interval touches, and the share of each that it covers."""
    first, last = max(0, int(np.floor(low + 1e-6))), min(length, int(np.ceil(high - 1e-6)))
    place = np.arange(first, max(last, first))
    share = np.minimum(place + 1, high) - np.maximum(place, low)
    return slice(first, max(last, first)), share.clip(0, 1).astype(np.float32)


def _pyramid(values: npt.NDArray[np.float32]) -> list[npt.NDArray[np.float32]]:
    """The map, and the same reduced by 2, 4, ...: means of the values that there are."""
    levels = [values]
    while max(levels[-1].shape[:2]) > _SMALLEST:
        last = levels[-1]
        even = np.pad(last, ((0, last.shape[0] % 2), (0, last.shape[1] % 2), (0, 0)), constant_values=np.nan)
        squares = np.stack([even[y::2, x::2] for y in (0, 1) for x in (0, 1)])
        known = np.isfinite(squares)
        with np.errstate(invalid="ignore"):
            levels.append(np.where(known, squares, 0).sum(0) / np.where(known.any(0), known.sum(0), np.nan))
    return levels


def _colors(values: npt.NDArray[np.float32], limits: tuple[float, float] | None) -> npt.NDArray[np.uint8]:
    """The colors (H, W, 3) of values (H, W, C)."""
    empty = np.isnan(values.sum(2))
    if limits is not None:
        low, high = limits
        share = (values[..., 0] - low) / (high - low if high > low else 1.0)
        values = colormaps[COLORS](np.where(empty, 0, share).clip(0, 1))[..., :3]
    out = np.rint(np.where(empty[..., None], 1.0, values).clip(0, 1) * 255).astype(np.uint8)
    out[empty] = _NOTHING
    return out


def _write_pyramid(
    path: Path,
    levels: list[npt.NDArray[np.uint8]],
    spacing: tuple[float, float],
    label: str,
    limits: tuple[float, float] | None,
) -> None:
    shown = f"{label}: {COLORS} from {limits[0]:g} to {limits[1]:g}" if limits is not None else label
    notes = {"axes": "YXS", "PhysicalSizeX": spacing[1], "PhysicalSizeY": spacing[0], "Description": shown}
    # By default tifffile's UUID tells the time and the machine: equal maps would be unequal files.
    identity = hashlib.sha256(levels[0].tobytes()).hexdigest()[:32]
    notes |= {"PhysicalSizeXUnit": "µm", "PhysicalSizeYUnit": "µm", "UUID": str(uuid.UUID(identity))}
    stored: dict[str, Any] = {"tile": (_TILE, _TILE), "photometric": "rgb", "compression": "zlib"}
    with tifffile.TiffWriter(path, ome=True) as tiff:
        for number, level in enumerate(levels):
            # In pixels per cm: for OpenSlide and others that do not read OME's notes.
            fine = tuple(1e4 / (um * 2**number) for um in spacing[::-1])
            part = {"subfiletype": 1} if number else {"subifds": len(levels) - 1, "metadata": notes}
            tiff.write(level, resolution=fine, resolutionunit="centimeter", **part, **stored)


def _over_slide(
    slide: Slide, found: HeatMap, colors: npt.NDArray[np.uint8], label: str, limits: tuple[float, float] | None
) -> Image.Image:
    """The slide's picture with the colors on it."""
    shown = slide_picture(slide)
    height, width = shown.pixels.shape[:2]
    rows, columns = (
        np.minimum((np.arange(length) + 0.5) * step / found.step, most - 1).astype(np.int64)
        for length, step, most in zip((height, width), shown.step, found.values.shape[:2], strict=True)
    )
    over, empty = colors[rows][:, columns], np.isnan(found.values.sum(2))[rows][:, columns]
    mixed = (shown.pixels.astype(np.uint16) + over) // 2
    picture = np.where(empty[..., None], shown.pixels, mixed.astype(np.uint8))
    return framed(Image.fromarray(picture), shown.spacing, label, limits, COLORS)
