"""The cells in QuPath's GeoJSON, and in that of CellViT and of ``densepath predict``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt

from densepath.annotations.cells.imported import PointsFile
from densepath.core.errors import UserError
from densepath.core.geojson import Feature, bounds_of, is_area, is_ignored, polygons_in, read_features
from densepath.core.geojson_parts import divided

SCORED = "the cells are annotations with a score, as predict writes them for images"
PARTS = "the cells are the parts of MultiPolygons, as CellViT writes all cells of a class"
_LONGEST = 512  # px: annotations that are longer are regions


def read_geojson(path: Path) -> PointsFile:
    """The centers of cells and detections, of their nuclei where they have one, and points of annotations.

    MultiPolygons that hold many objects are divided, see :func:`~densepath.core.geojson_parts.divided`.

    Annotations with an area are regions, except in a file without cells and detections. There, those with a score are
    cells, as ``densepath predict`` writes them. So are the parts of MultiPolygons, as CellViT writes them, if one of
    the file is divided; of each, all parts must be at most 512 px long and have no holes.

    Raises:
        UserError: it cannot be read, or an object is not valid.
    """
    features = read_features(path)
    parts = divided({path: features})[path]
    is_marked = any(feature.kind in ("cell", "detection") for feature in features)
    is_divided = any(len(own) > 1 for own in parts)
    points: list[tuple[float, float]] = []
    classes: list[str | None] = []
    origins: dict[str, None] = {}
    left_out = 0
    for feature, own in zip(features, parts, strict=True):
        try:
            origin = _origin(feature, own, is_marked, is_divided)
            found = [] if origin is None else list(chain.from_iterable(map(_places, own)))
        except (ValueError, TypeError, IndexError, KeyError) as error:
            raise UserError(f"{path}: {feature.name} is not a cell ({error}); export it again") from error
        left_out += origin is None and feature.kind == "annotation"
        points += found
        classes += [feature.category] * len(found)
        origins |= {origin: None} if origin else {}
    of_regions = left_out if origins or not points else 0  # beside marked cells and points, nobody takes them for cells
    return PointsFile(np.array(points, np.float64).reshape(-1, 2), classes, origins=tuple(origins), left_out=of_regions)


def _origin(feature: Feature, parts: Sequence[Feature], is_marked: bool, is_divided: bool) -> str | None:
    """What the cells of an object are, "" if they are marked as cells; None for an object that is not of cells."""
    if feature.kind in ("cell", "detection"):
        return PARTS if len(parts) > 1 else ""
    if feature.kind != "annotation":
        return None
    if not is_area(feature.geometry):
        return ""
    if is_marked or is_ignored(feature.category):
        return None
    if feature.is_scored:
        return SCORED
    is_several = is_divided and feature.geometry["type"] == "MultiPolygon"
    return PARTS if is_several and all(map(_is_small, parts)) else None


def _is_small(feature: Feature) -> bool:
    low, high = bounds_of(feature.geometry)
    return bool((high - low).max() <= _LONGEST) and all(len(rings) == 1 for rings in polygons_in(feature.geometry))


def _places(feature: Feature) -> Iterator[tuple[float, float]]:
    geometry = feature.nucleus if isinstance(feature.nucleus, dict) else feature.geometry
    kind = geometry.get("type") if isinstance(geometry, dict) else None
    if kind in ("Point", "MultiPoint"):
        listed = [geometry["coordinates"]] if kind == "Point" else geometry["coordinates"]
        yield from ((float(x), float(y)) for x, y, *_ in listed)
    elif is_area(geometry):
        yield _center([rings[0] for rings in polygons_in(geometry)])


def _center(rings: Sequence[npt.NDArray[np.float64]]) -> tuple[float, float]:
    """The center of area of polygons."""
    total, sums = 0.0, np.zeros(2)
    for ring in rings:
        start = ring[0]
        one, two = ring - start, np.roll(ring, -1, axis=0) - start  # small numbers: no rounding
        cross = one[:, 0] * two[:, 1] - two[:, 0] * one[:, 1]
        area = cross.sum() / 2
        sums += np.sign(area) * ((one + two) * cross[:, None]).sum(0) / 6 + abs(area) * start
        total += abs(area)
    x, y = sums / total if total else np.concatenate(rings).mean(0)
    return float(x), float(y)
