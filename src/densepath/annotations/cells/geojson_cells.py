"""The cells in QuPath's GeoJSON, and in that of CellViT and of ``densepath predict``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

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

    Annotations with an area are regions, except in a file without cells, detections and points. There, those with a
    score are cells, as ``densepath predict`` writes them. So are those of a file that is divided, as CellViT writes
    them, if all parts of one are at most 512 px long and have no holes.

    Raises:
        UserError: it cannot be read, or an object is not valid.
    """
    features = read_features(path)
    regions = [feature for feature in features if feature.kind == "annotation" and is_area(feature.geometry)]
    marked = list(filter(_is_marked, features))
    candidates = marked or [feature for feature in regions if not is_ignored(feature.category)]
    parts = divided(candidates)
    is_divided = any(len(own) > 1 for own in parts)
    points: list[tuple[float, float]] = []
    classes: list[str | None] = []
    origins: dict[str, None] = {}
    left_out = len(regions)
    for feature, own in zip(candidates, parts, strict=True):
        try:
            origin = _origin(feature, own, is_divided)
            found = [] if origin is None else list(chain.from_iterable(map(_places, own)))
        except (ValueError, TypeError, IndexError, KeyError) as error:
            raise UserError(f"{path}: {feature.name} is not a cell ({error}); export it again") from error
        left_out -= not marked and origin is not None
        points += found
        classes += [feature.category] * len(found)
        origins |= {origin: None} if origin else {}
    of_regions = left_out if origins or not points else 0  # beside marked cells and points, nobody takes them for cells
    return PointsFile(np.array(points, np.float64).reshape(-1, 2), classes, origins=tuple(origins), left_out=of_regions)


def _is_marked(feature: Feature) -> bool:
    """Whether an object is of cells, whatever else the file has: a cell, a detection, or points of an annotation."""
    return feature.kind in ("cell", "detection") or (feature.kind == "annotation" and _is_point(feature.geometry))


def _is_point(geometry: Any) -> bool:
    return isinstance(geometry, dict) and geometry.get("type") in ("Point", "MultiPoint")


def _origin(feature: Feature, parts: Sequence[Feature], is_divided: bool) -> str | None:
    """What the cells of an object are, "" if they are marked as cells; None for an object that is not of cells."""
    if _is_marked(feature):
        return PARTS if len(parts) > 1 else ""
    if feature.is_scored:
        return SCORED
    return PARTS if is_divided and all(map(_is_small, parts)) else None


def _is_small(feature: Feature) -> bool:
    low, high = bounds_of(feature.geometry)
    return bool((high - low).max() <= _LONGEST) and all(len(rings) == 1 for rings in polygons_in(feature.geometry))


def _places(feature: Feature) -> Iterator[tuple[float, float]]:
    geometry = feature.nucleus if isinstance(feature.nucleus, dict) else feature.geometry
    if _is_point(geometry):
        listed = [geometry["coordinates"]] if geometry["type"] == "Point" else geometry["coordinates"]
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
