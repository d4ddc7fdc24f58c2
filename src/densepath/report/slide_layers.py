"""Slides with what was found on them as layers: tissue, tiles, attention, objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from densepath.core.errors import UserError
from densepath.core.geojson import polygons_in
from densepath.core.json_files import load_json
from densepath.report.blocks import Layers, Picture
from densepath.report.embedded import below, encode, encode_pixels
from densepath.sources.corrupt import CorruptImage
from densepath.sources.slides.open import open_slide
from densepath.sources.tiles.tile_files import is_tile_folder, read_slide_rows, read_tile_folder
from densepath.transfer.slides.overview import SlidePicture, slide_picture

_OUTLINES = {"tissue": "tissue", "objects": "geojson", "attention": "attention"}  # layer -> the folder of its GeoJSON
_COLORS = {"tissue": (0, 140, 0), "tiles": (40, 60, 255), "objects": (220, 30, 30), "attention": (40, 60, 255)}
_SIDE = 900  # pixels
_LARGEST = 2**26  # bytes of a GeoJSON

Rings = Sequence[npt.NDArray[np.float64]]  # (N, 2) x, y in pixels of level 0
Shape = tuple[Rings, float | None]  # a polygon, and its value from 0 to 1


def slide_layers(folder: Path, most: int) -> list[Layers]:
    """Of at most ``most`` slides in a folder of ``tile`` or ``predict``, the slide and what was found as layers.

    Slides that cannot be opened any more are left out.
    """
    try:
        known = [row for row in read_slide_rows(folder) if row.get("path") and row.get("slide")]
        rows = [row for row in known if below(folder, row["slide"])][:most]
        tilings = {each.name: each for each in read_tile_folder(folder)} if rows and is_tile_folder(folder) else {}
    except (UserError, OSError, LookupError):
        return []
    made = []
    for row in rows:
        name = row["slide"]
        shapes = {layer: _shapes(folder / place / f"{name}.geojson") for layer, place in _OUTLINES.items()}
        if name in tilings:
            tiling = tilings[name]
            boxes = tiling.boxes_um() / np.tile(tiling.spacing, 2)
            shapes["tiles"] = [([_rectangle(*box)], None) for box in boxes.tolist()]
        try:
            picture = slide_picture(open_slide(row["path"]), _SIDE)
        except (UserError, CorruptImage, OSError):
            continue
        layers = {layer: _drawn(picture, own, layer) for layer, own in shapes.items() if own}
        if layers:
            made.append(Layers(name, Picture(encode_pixels(picture.pixels, _SIDE), name), layers))
    return made


def _shapes(path: Path) -> list[Shape]:
    """The polygons of a GeoJSON file of QuPath; with their attention, if they have one, relative to the highest."""
    try:
        if path.stat().st_size > _LARGEST:
            return []
        content = load_json(path, "GeoJSON")
        features: list[Mapping[str, Any]] = content["features"] if isinstance(content, dict) else content
        found: list[Shape] = []
        for feature in features:
            measured = (feature.get("properties") or {}).get("measurements")
            values = [v for v in measured.values() if isinstance(v, float)] if isinstance(measured, dict) else []
            named = values and all("attention" in name for name in measured or ())
            attention = max(values) if named else None
            found += [(rings, attention) for rings in polygons_in(feature["geometry"])]
    except (OSError, UserError, LookupError, TypeError, ValueError, AttributeError):
        return []
    highest = max((value for _, value in found if value is not None), default=1.0) or 1.0
    return [(rings, None if value is None else value / highest) for rings, value in found]


def _drawn(picture: SlidePicture, shapes: Sequence[Shape], layer: str) -> Picture:
    """Polygons as a transparent picture of the slide's size: outlines, or filled with the color of their value."""
    height, width = picture.pixels.shape[:2]
    image = Image.new("RGBA", (width, height))
    draw = ImageDraw.Draw(image)
    scale = np.array(picture.step[::-1])
    for rings, value in shapes:
        for ring in rings:
            points = [tuple(point) for point in (np.asarray(ring) / scale).tolist()]
            if len(points) > 2 and value is not None:
                red, green, blue, _ = matplotlib.colormaps["viridis"](value, bytes=True)
                draw.polygon(points, fill=(int(red), int(green), int(blue), 150))
            elif len(points) > 2:
                draw.line([*points, points[0]], fill=(*_COLORS[layer], 255), width=2 if layer != "tiles" else 1)
    return Picture(encode(image, _SIDE), layer)


def _rectangle(top: float, left: float, height: float, width: float) -> npt.NDArray[np.float64]:
    return np.array([[left, top], [left + width, top], [left + width, top + height], [left, top + height]])
