"""MultiPolygons that hold many objects, as CellViT writes all cells of a class, divided into their parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from densepath.core.geojson import Feature, polygons_in

_FEW = 3  # parts that a single object may have
_FAR = 3  # times the longest of far-apart parts, which their MultiPolygon is at least long


def divided(files: Mapping[Path, Sequence[Feature]]) -> dict[Path, list[list[Feature]]]:
    """The objects of files, each as a list of its parts: of itself only, if it is not divided.

    Parts are far apart if the bounds of all are at least 3 times as long as those of the longest part. If a
    MultiPolygon in these files has more than 3 parts that are far apart, it and all others with far-apart parts are
    divided: those with 2 or 3 are then classes with few objects. Predictions of densepath, which have a score, and
    cells with a nucleus are never divided.

    Args:
        files: the objects of each file.
    """
    parts = {path: [_parts(feature) for feature in found] for path, found in files.items()}
    if any(len(own) > _FEW for found in parts.values() for own in found):
        return parts
    return {path: [[feature] for feature in found] for path, found in files.items()}


def _parts(feature: Feature) -> list[Feature]:
    """The parts of an object, if they are far apart; otherwise itself."""
    geometry = feature.geometry
    is_several = isinstance(geometry, dict) and geometry.get("type") == "MultiPolygon"
    if not is_several or feature.is_scored or feature.nucleus is not None:
        return [feature]
    try:
        polygons = polygons_in(geometry)
    except ValueError:  # reported when it is drawn
        return [feature]
    lows, highs = (np.array([edge(rings[0], axis=0) for rings in polygons]) for edge in (np.min, np.max))
    if (highs.max(axis=0) - lows.min(axis=0)).max() < _FAR * (highs - lows).max():
        return [feature]
    shapes = [{"type": "Polygon", "coordinates": [ring.tolist() for ring in rings]} for rings in polygons]
    return [replace(feature, name=f"{feature.name}, part {n}", geometry=each) for n, each in enumerate(shapes, 1)]
