"""MultiPolygons that hold many objects, as CellViT writes all cells of a class, divided into their parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from densepath.core.geojson import Feature, is_area, polygons_in
from densepath.core.polygons import Ring

_FEW = 3  # parts that a single object may have
_FAR = 3  # times the longest of far-apart parts, which their MultiPolygon is at least long


def divided(features: Sequence[Feature]) -> list[list[Feature]]:
    """The objects of a file, each as a list of its parts: of itself only, if it is not divided.

    All MultiPolygons are divided, whatever their parts, if the objects have the form of CellViT's: there is at most one
    with an area for each class, none has a score, as predictions of densepath, or a nucleus, and at least one
    MultiPolygon has more than 3 parts that are far apart. Parts are far apart if the bounds of all are at least 3 times
    as long as those of the longest part.

    Args:
        features: the objects of one file. Those without an area may be among them.
    """
    areas = [feature for feature in features if is_area(feature.geometry)]
    is_one_each = len({feature.category for feature in areas}) == len(areas)
    if is_one_each and not any(feature.is_scored or feature.nucleus is not None for feature in areas):
        polygons = [_polygons(feature) for feature in features]
        if any(len(own) > _FEW and _are_far_apart(own) for own in polygons):
            return [_parts(feature, own) for feature, own in zip(features, polygons, strict=True)]
    return [[feature] for feature in features]


def _polygons(feature: Feature) -> list[list[Ring]]:
    """The polygons of a MultiPolygon, each a list of rings (N, 2); none of other objects."""
    if not is_area(feature.geometry) or feature.geometry["type"] != "MultiPolygon":
        return []
    try:
        return polygons_in(feature.geometry)
    except ValueError:  # reported when it is drawn
        return []


def _are_far_apart(polygons: Sequence[Sequence[Ring]]) -> bool:
    lows, highs = (np.array([edge(rings[0], axis=0) for rings in polygons]) for edge in (np.min, np.max))
    return bool((highs.max(axis=0) - lows.min(axis=0)).max() >= _FAR * (highs - lows).max())


def _parts(feature: Feature, polygons: Sequence[Sequence[Ring]]) -> list[Feature]:
    """An object for each of several polygons; otherwise the object itself."""
    if len(polygons) < 2:
        return [feature]
    shapes = [{"type": "Polygon", "coordinates": [ring.tolist() for ring in rings]} for rings in polygons]
    return [replace(feature, name=f"{feature.name}, part {n}", geometry=each) for n, each in enumerate(shapes, 1)]
