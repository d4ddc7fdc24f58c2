"""Pictures of the objects of a slide: the whole slide and a few places at full resolution with their outlines, and a
heat map of their density."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from densepath.core.files import atomic_write
from densepath.sources.corrupt import CorruptImage
from densepath.sources.slides.slide import Slide, SlideLevel
from densepath.transfer.detection.object_colors import PALETTE, color_of
from densepath.transfer.detection.prediction_files import Grid
from densepath.transfer.slides.heat_map import write_heat_map
from densepath.transfer.slides.object_files import centroids_in, polygons_in
from densepath.transfer.slides.overview import font, framed, overview
from densepath.transfer.slides.slide_list import Share

SQUARE = 250.0  # µm: about the side of the rectangles in which objects are counted
_LEAST_TISSUE = 0.05  # share of a rectangle without objects, below which it has no density
_PLACES, _SIDE, _GAP = 3, 512, 8  # pixels
_MARK = (20, 20, 20)


def draw_objects(level: SlideLevel, grid: Grid, geojson: Path, table: Path, path: Path) -> Path:
    """Draw the outlines of objects on the slide, and on three places around objects as the detector saw them.

    Args:
        level: what the detector saw.
        grid: where level 0 lies in it.
        geojson, table: what :class:`~densepath.transfer.slides.object_files.ObjectFiles` wrote.
        path: the PNG.
    """
    whole = overview(level.slide)
    centers = centroids_in(table)
    count = min(_PLACES, len(centers))
    chosen = centers[np.lexsort(centers.T)][[(2 * k + 1) * len(centers) // (2 * count) for k in range(count)]]
    side = min(_SIDE, *level.size)
    places = []  # upper left corners y, x in the level's pixels
    for x, y in chosen / grid.step[::-1] + grid.shift:
        middle = [round(value - side / 2) for value in (y, x)]
        places.append([min(max(value, 0), most - side) for value, most in zip(middle, level.size, strict=True)])
    canvases = [Image.fromarray(whole.pixels)]
    canvases += [Image.fromarray(_read(level, top, left, side)) for top, left in places]
    draws = [ImageDraw.Draw(canvas) for canvas in canvases]
    for number, rings in enumerate(polygons_in(geojson)):
        color = color_of(number % len(PALETTE))
        for ring in rings:
            _outline(draws[0], ring / whole.step[::-1], canvases[0].size, color)
            own = ring / grid.step[::-1] + grid.shift
            for draw, (top, left) in zip(draws[1:], places, strict=True):
                _outline(draw, own - (left, top), (side, side), color)
    for number, (top, left) in enumerate(places, 1):
        low = grid.place([(left, top), (left + side, top + side)]) / whole.step[::-1]
        draws[0].rectangle([*low[0], *low[1]], outline=_MARK, width=3)
        draws[0].text(tuple(low[0] + 6), str(number), _MARK, font(22))
        draws[number].text((8, 6), str(number), _MARK, font(22))
    spacing = level.spacing
    label = f"{len(centers)} objects"
    parts = [framed(canvases[0], whole.spacing, label)]
    parts += [framed(canvas, None if spacing is None else (spacing, spacing)) for canvas in canvases[1:]]
    with atomic_write(path) as part:
        _beside(parts).save(part, format="PNG")
    return path


def _read(level: SlideLevel, top: int, left: int, side: int) -> npt.NDArray[np.uint8]:
    try:
        return level.read(top, left, side, side)
    except CorruptImage:
        return np.full((side, side, 3), 160, np.uint8)


def _outline(
    draw: ImageDraw.ImageDraw, ring: npt.NDArray[np.float64], size: tuple[int, int], color: tuple[int, int, int]
) -> None:
    """Draw a ring (N, 2) x, y whose origin is the corner of the first pixel, unless it lies outside."""
    if (ring.max(0) > 0).all() and (ring.min(0) < size).all():
        draw.line([(x - 0.5, y - 0.5) for x, y in ring.tolist()], fill=color, width=2)


def _beside(parts: list[Image.Image]) -> Image.Image:
    """The first picture, and the others in columns at its right that are as high."""
    first, others = parts[0], parts[1:]
    if not others:
        return first
    wide, high = others[0].size
    rows = max(1, (first.height + _GAP) // (high + _GAP))
    columns = math.ceil(len(others) / rows)
    height = max(first.height, min(rows, len(others)) * (high + _GAP) - _GAP)
    canvas = Image.new("RGB", (first.width + columns * (wide + _GAP), height), "white")
    canvas.paste(first, (0, 0))
    for number, part in enumerate(others):
        column, row = divmod(number, rows)
        canvas.paste(part, (first.width + _GAP + column * (wide + _GAP), row * (high + _GAP)))
    return canvas


def write_density(slide: Slide, table: Path, share: Share, path: Path) -> None:
    """Write a heat map of objects per mm², counted in rectangles of about 250 µm that divide the slide evenly.

    Args:
        slide: the slide.
        table: of its objects.
        share: of tissue in rectangles (B, 4) in µm: those without tissue and without objects have no value.
        path: of the files, without suffix.
    """
    extent = [length * mpp for length, mpp in zip(slide.size, slide.mpp, strict=True)]
    shape = [max(1, round(length / SQUARE)) for length in extent]
    sides = np.divide(extent, shape)
    places = centroids_in(table)[:, ::-1] * slide.mpp // sides
    rows, columns = (places[:, axis].astype(int).clip(0, shape[axis] - 1) for axis in (0, 1))
    counts = np.bincount(rows * shape[1] + columns, minlength=shape[0] * shape[1])
    corners = np.indices(shape).reshape(2, -1).T * sides
    boxes = np.concatenate([corners, np.broadcast_to(sides, corners.shape)], axis=1)
    density = counts / (sides.prod() / 1e6)
    density[(counts == 0) & (share(boxes) < _LEAST_TISSUE)] = np.nan
    known = density[np.isfinite(density)]
    limits = (0.0, max(1.0, float(known.max()) if known.size else 1.0))
    write_heat_map(path, slide, boxes, density, label="objects per mm²", limits=limits)
