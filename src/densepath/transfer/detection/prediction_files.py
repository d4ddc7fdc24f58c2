"""What is written for the predictions on an image: label map, outlines for QuPath, picture, measurements."""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile

from densepath.core.files import atomic_write
from densepath.core.polygons import polygons_of
from densepath.sources.image_reader import ImageReader
from densepath.sources.pixel_source import PixelSpec
from densepath.sources.slides.resolution import Spacing
from densepath.transfer.detection.found import FoundObject, painting_order
from densepath.transfer.detection.object_colors import color_numbers, color_of, near_boxes
from densepath.transfer.detection.overlay import outlined
from densepath.transfer.detection.prediction import Prediction

COLUMNS = ("image", "object", "class", "score", "x", "y", "width", "height", "area", "centroid_x", "centroid_y")
MICRONS = ("area_um2", "centroid_x_um", "centroid_y_um")
GEOJSON_START, GEOJSON_END = '{"type": "FeatureCollection", "features": [', "\n]}\n"
_DECIMALS = 2  # of the coordinates of a slide
_BAND = 512  # rows that are painted at a time
_MOST_IN_16_BITS = 2**16 - 1
_LONGEST_PICTURE = 2048  # pixels


def write_label_map(found: Prediction, path: Path) -> Path:
    """Write the objects as a PNG of 16 bits: 0 for background, k for the k-th object, smaller ones on top.

    Rows are painted in bands, so that the whole map is never in memory. More than 65,535 objects become a TIFF of 32
    bits.

    Args:
        found: the objects.
        path: the file; its suffix is replaced.

    Returns:
        The file.
    """
    if len(found) <= _MOST_IN_16_BITS:
        with atomic_write(path.with_name(f"{path.name}.png")) as part, part.open("wb") as file:
            for chunk in _png(found):
                file.write(chunk)
        return path.with_name(f"{path.name}.png")
    with atomic_write(path.with_name(f"{path.name}.tif")) as part:
        stored: dict[str, Any] = {"dtype": np.uint32, "tile": (_BAND, _BAND), "compression": "zlib", "bigtiff": True}
        tifffile.imwrite(part, _tiles(found), shape=found.size, **stored)
    return path.with_name(f"{path.name}.tif")


def _bands(found: Prediction, dtype: np.dtype[Any]) -> Iterator[npt.NDArray[Any]]:
    """The label map from top to bottom, some rows at a time."""
    height, width = found.size
    numbered = sorted(enumerate(found.objects, 1), key=lambda pair: pair[1].top)
    open_ones: list[tuple[int, FoundObject]] = []
    for top in range(0, height, _BAND):
        bottom = min(top + _BAND, height)
        while numbered and numbered[0][1].top < bottom:
            open_ones.append(numbered.pop(0))
        band = np.zeros((bottom - top, width), dtype)
        for number, each in painting_order(open_ones):
            y1, y2 = max(top, each.top), min(bottom, each.bottom)
            rows = each.mask[y1 - each.top : y2 - each.top]
            band[y1 - top : y2 - top, each.left : each.right][rows] = number
        open_ones = [pair for pair in open_ones if pair[1].bottom > bottom]
        yield band


def _tiles(found: Prediction) -> Iterator[npt.NDArray[np.uint32]]:
    """The label map as square tiles, row by row."""
    for band in _bands(found, np.dtype(np.uint32)):
        height, width = band.shape
        padded = np.pad(band, ((0, _BAND - height), (0, -width % _BAND)))
        yield from (padded[:, left : left + _BAND] for left in range(0, width, _BAND))


def _png(found: Prediction) -> Iterator[bytes]:
    """A PNG of 16-bit grey, band by band."""
    height, width = found.size
    yield b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 0, 0, 0, 0))
    packer = zlib.compressobj(6)
    for band in _bands(found, np.dtype(">u2")):
        rows = np.zeros((len(band), 1 + 2 * width), np.uint8)  # each row begins with its filter: none
        rows[:, 1:] = band.view(np.uint8).reshape(len(band), -1)
        if data := packer.compress(rows.tobytes()):
            yield _chunk(b"IDAT", data)
    yield _chunk(b"IDAT", packer.flush()) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@dataclass(frozen=True)
class Grid:
    """Where the pixels that a detector saw lie in those of the results: of the image, or of a slide's level 0.

    Args:
        step: pixels of the results for one that it saw, along y and x.
        shift: pixels that it saw, by which each lies up and left of the place that it stands for.
        spacing: µm per pixel of the results along y and x; None where unknown.
    """

    step: tuple[float, float] = (1, 1)
    shift: float = 0.0
    spacing: tuple[float, float] | None = None

    def place(self, points: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Points (N, 2) x, y of the pixels that it saw, in those of the results."""
        return (np.asarray(points, np.float64) - self.shift) * self.step[::-1]


AS_SEEN = Grid()


def write_geojson(found: Prediction, path: Path) -> Path:
    """Write the outlines as GeoJSON that QuPath imports: annotations with class and score, in pixels of the image.

    Outlines run between the centers of neighboring pixels, so that exactly the object's pixels have their centers
    inside.
    """
    with atomic_write(path) as part, part.open("w") as file:
        file.write(GEOJSON_START)
        for number, each in enumerate(found.objects, 1):
            file.write((",\n" if number > 1 else "\n") + json.dumps(feature_of(each, number, found.classes)))
        file.write(GEOJSON_END)
    return path


def feature_of(
    found: FoundObject, number: int, classes: Sequence[str], grid: Grid = AS_SEEN, kind: str = "annotation"
) -> dict[str, Any]:
    """An object as a feature of GeoJSON, with its class, score and area.

    Args:
        found: the object.
        number: of the object, its name.
        classes: names of the labels 1, 2, ...
        grid: of the coordinates.
        kind: QuPath's type of objects, "annotation" or "detection".
    """
    properties = {
        "objectType": kind,
        "name": str(number),
        "classification": {"name": classes[found.label - 1], "color": list(color_of(found.label - 1))},
        "measurements": {"score": found.score, **_areas(found, grid)},
    }
    return {"type": "Feature", "geometry": outline(found, grid), "properties": properties}


def _areas(found: FoundObject, grid: Grid) -> dict[str, float]:
    if grid.spacing is None:
        return {"area px^2": found.area}
    return {"area µm^2": found.area * math.prod(grid.step) * math.prod(grid.spacing)}


def outline(found: FoundObject, grid: Grid = AS_SEEN) -> dict[str, Any]:
    """An object as a GeoJSON Polygon, or as a MultiPolygon if its pixels are not connected, with holes."""
    polygons = polygons_of(found.mask, found.top, found.left)
    if grid is not AS_SEEN:
        polygons = [[np.round(grid.place(_without_straight(ring)), _DECIMALS) for ring in rings] for rings in polygons]
    coordinates = [[ring.tolist() for ring in rings] for rings in polygons]
    if len(polygons) == 1:
        return {"type": "Polygon", "coordinates": coordinates[0]}
    return {"type": "MultiPolygon", "coordinates": coordinates}


def _without_straight(ring: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """A closed ring (N, 2) without the points at which it goes straight on."""
    steps = np.diff(ring, axis=0, append=ring[1:2])
    before, after = steps[:-1], steps[1:]
    turns = before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]
    kept = ring[1:][turns]
    return np.concatenate([kept, kept[:1]])


def rows_of(found: Prediction, name: str, spacing: Spacing | None) -> list[dict[str, Any]]:
    """A row of measurements for each object: pixels, and µm where µm per pixel (along y and x) are known."""
    grid = Grid(spacing=spacing)
    return [row_of(each, name, number, found.classes, grid) for number, each in enumerate(found.objects, 1)]


def row_of(found: FoundObject, name: str, number: int, classes: Sequence[str], grid: Grid = AS_SEEN) -> dict[str, Any]:
    """The measurements of an object, by the names of the columns. Arguments as for :func:`feature_of`.

    Args:
        name: of its image.
    """
    (x1, y1), (x2, y2), (x, y) = grid.place([found.box[:2], found.box[2:], found.centroid]).tolist()
    area = found.area * math.prod(grid.step)
    values = (name, number, classes[found.label - 1], found.score, x1, y1, x2 - x1, y2 - y1, area, x, y)
    row: dict[str, Any] = dict(zip(COLUMNS, values, strict=True))
    if grid.spacing is not None:
        down, across = grid.spacing
        row |= zip(MICRONS, (area * down * across, x * across, y * down), strict=True)
    return row


def draw(image: ImageReader, found: Prediction, spec: PixelSpec, path: Path) -> Path:
    """Draw the outlines on the image, reduced to at most 2048 px; objects that touch have different colors."""
    height, width = found.size
    factor = -(-max(height, width) // _LONGEST_PICTURE)
    bands = []
    for top in range(0, height - height % factor or height, 16 * factor):
        rows = min(16 * factor, height - top)
        pixels = image.read(top, 0, rows, width)[::factor, ::factor]
        bands.append(spec.to_rgb(np.ascontiguousarray(pixels)))  # not a view, which would keep all pixels
    canvas = np.concatenate(bands)
    objects = [each for _, each in painting_order(enumerate(found.objects, 1))]
    shapes = [(each.top // factor, each.left // factor, each.mask[::factor, ::factor]) for each in objects]
    numbers = color_numbers(near_boxes([(each.top, each.left, each.bottom, each.right) for each in objects]))
    colors = [color_of(numbers[position]) for position in range(len(objects))]
    with atomic_write(path) as part:
        outlined(canvas, shapes, colors).save(part, format="PNG")
    return path
