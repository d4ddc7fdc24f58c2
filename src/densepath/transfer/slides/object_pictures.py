"""Pictures of the objects of a slide: the whole slide and a few places as the detector saw them, with outlines."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from densepath.core.errors import counted
from densepath.core.files import atomic_write
from densepath.core.fonts import font
from densepath.sources.corrupt import CorruptImage
from densepath.sources.slides.slide import SlideLevel
from densepath.transfer.detection.object_colors import PALETTE, color_of
from densepath.transfer.detection.prediction_files import Grid
from densepath.transfer.slides.object_files import centroids_in, polygons_in
from densepath.transfer.slides.overview import framed, slide_picture

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
    whole = slide_picture(level.slide)
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
    spacing = grid.step[0] * level.slide.mpp[0], grid.step[1] * level.slide.mpp[1]
    label = counted(len(centers), "object")
    parts = [framed(canvases[0], whole.spacing, label)]
    parts += [framed(canvas, spacing) for canvas in canvases[1:]]
    with atomic_write(path) as part:
        _beside(parts).save(part, format="PNG", compress_level=1)
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
