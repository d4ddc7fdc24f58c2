"""Objects in QuPath's GeoJSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from densepath.core.errors import UserError
from densepath.core.json_files import load_json
from densepath.core.polygons import Ring, ellipse, fill

ENDINGS = (".geojson", ".geojson.gz", ".json", ".json.gz")
TYPES = ("annotation", "detection", "cell")
REGION = "Region*"  # QuPath's class of areas of interest
_OTHER_TYPES = {"tile": "tile", "tmacore": "core", "tma_core": "core", "root": "root"}
_OLD_TYPES = {f"path{name}object": name for name in (*TYPES, "tile", "root")}  # of version 0.2, which had them as ids
_MOST = 1e7  # pixels
_DEEPEST = 50  # of objects in objects


@dataclass(frozen=True)
class Feature:
    """An object of QuPath.

    Args:
        name: how the user finds it.
        kind: "annotation", "detection" or "cell"; another one for what is not an object of interest.
        category: name of its class; None without one.
        geometry: GeoJSON.
        nucleus: GeoJSON of a cell's nucleus; None without one.
        is_scored: whether it has the measurement "score", as objects that ``densepath predict`` wrote.
    """

    name: str
    kind: str
    category: str | None
    geometry: Any
    nucleus: Any = None
    is_scored: bool = False


def same_class(name: str | None, other: str) -> bool:
    """Whether two names are of one class: in any spelling of capitals, and with or without ``*`` at their ends."""
    return name is not None and _plain(name) == _plain(other)


def is_ignored(category: str | None) -> bool:
    """Whether QuPath ignores a class: its name ends in ``*``, or it is Ignore, as others write Ignore*."""
    return category is not None and (category.endswith("*") or same_class(category, "Ignore*"))


def is_excluded(feature: Feature) -> bool:
    """Whether an object is an area to leave out: an annotation of a class that QuPath ignores, other than Region*."""
    return feature.kind == "annotation" and is_ignored(feature.category) and not same_class(feature.category, REGION)


def _plain(name: str) -> str:
    return name.strip().removesuffix("*").casefold()


def read_features(path: Path) -> list[Feature]:
    """The objects of a GeoJSON file: a FeatureCollection, a list of features, or one feature, with nested objects.

    Raises:
        UserError: it cannot be read, or is none of these.
    """
    content = load_json(path, "GeoJSON as QuPath exports it")
    if isinstance(content, dict):
        content = content.get("features") if content.get("type") == "FeatureCollection" else [content]
    if not isinstance(content, list):
        raise UserError(f"{path} is not GeoJSON with features; export the objects of QuPath as GeoJSON")
    found = []
    for number, entry in enumerate(content):
        if not isinstance(entry, dict) or entry.get("type") != "Feature":
            raise UserError(f"{path} is not GeoJSON of QuPath: entry {number} is not a feature; export it again")
        found += list(_features(entry, f"object {number + 1}"))
    return found


def _features(entry: dict[str, Any], name: str, depth: int = 0) -> Iterator[Feature]:
    """A feature and the objects in it."""
    given = entry.get("properties")
    properties: dict[str, Any] = given if isinstance(given, dict) else {}
    kind = next((properties[k] for k in ("objectType", "object_type", "type") if properties.get(k)), entry.get("id"))
    kind = str(kind or "").lower()
    kind = _OLD_TYPES.get(kind, kind)
    kind = kind if kind in TYPES else _OTHER_TYPES.get(kind, "annotation")  # as QuPath reads it
    nucleus = entry.get("nucleusGeometry", properties.get("nucleusGeometry"))
    category, is_scored = _category(properties.get("classification")), _is_scored(properties.get("measurements"))
    yield Feature(name, kind, category, entry.get("geometry"), nucleus, is_scored)
    inside = (properties[k] for k in ("childObjects", "children") if isinstance(properties.get(k), list))
    children: list[Any] = next(inside, []) if depth < _DEEPEST else []
    for number, child in enumerate(children):
        if isinstance(child, dict):
            yield from _features(child, f"{name}.{number + 1}", depth + 1)


def _category(classification: Any) -> str | None:
    """The name of a class: derived ones have several names, which QuPath joins by a colon."""
    if isinstance(classification, dict):
        names = classification.get("names")
        joined = ": ".join(str(each) for each in names if each) if isinstance(names, list) else None
        name = classification.get("name") or joined
    else:
        name = classification
    return str(name).strip() or None if name else None


def _is_scored(measurements: Any) -> bool:
    """Whether measurements, by their names or as a list of names and values, have a score."""
    if isinstance(measurements, list):
        return any(isinstance(each, dict) and each.get("name") == "score" for each in measurements)
    return isinstance(measurements, dict) and "score" in measurements


def fill_geometry(
    geometry: Any,
    height: int,
    width: int,
    scale: tuple[float, float] = (1.0, 1.0),
    origin: tuple[float, float] = (0.0, 0.0),
) -> tuple[int, int, npt.NDArray[np.bool_]]:
    """Draw a Polygon or a MultiPolygon: the pixels whose centers lie inside.

    Args:
        geometry: GeoJSON in its own pixels. With ``isEllipse``, the ellipse in its bounds.
        height, width: of the image that is drawn.
        scale: pixels of that image for one of the geometry, along x and y.
        origin: x and y of the upper left corner of that image in pixels of the geometry.

    Returns:
        Top, left, and the mask (h, w) of the part of the image that has the pixels.

    Raises:
        ValueError: what is wrong, as a phrase for several outlines.
    """
    polygons = [[(ring - origin) * scale for ring in rings] for rings in polygons_in(geometry)]
    if geometry.get("isEllipse") is True:
        polygons = [[ellipse(np.concatenate([ring for rings in polygons for ring in rings]))]]
    parts = [(top, left, mask) for top, left, mask in (fill(rings, height, width) for rings in polygons) if mask.any()]
    if not parts:
        raise ValueError("outlines that cover no pixel")
    top, left = min(y for y, _, _ in parts), min(x for _, x, _ in parts)
    bottom, right = max(y + len(part) for y, _, part in parts), max(x + part.shape[1] for _, x, part in parts)
    mask = np.zeros((bottom - top, right - left), bool)
    for y, x, part in parts:
        mask[y - top : y - top + part.shape[0], x - left : x - left + part.shape[1]] |= part
    return top, left, mask


def moved(geometry: Any, corner: tuple[float, float], step: float) -> Any:
    """A Polygon or a MultiPolygon in the pixels of a tile; others, and those without coordinates, as they are.

    Args:
        geometry: GeoJSON.
        corner: x, y of the tile.
        step: pixels of the geometry for one of the tile.
    """
    try:
        polygons = polygons_in(geometry) if is_area(geometry) else []
    except ValueError:
        return geometry
    if not polygons:
        return geometry
    places = [[((ring - corner) / step).tolist() for ring in rings] for rings in polygons]
    return {**geometry, "type": "MultiPolygon", "coordinates": places}


def is_area(geometry: Any) -> bool:
    """Whether a geometry has an area: not a point or a line."""
    return isinstance(geometry, dict) and geometry.get("type") in ("Polygon", "MultiPolygon")


def bounds_of(geometry: dict[str, Any]) -> tuple[Ring, Ring]:
    """The least and the largest x, y of a Polygon or a MultiPolygon. Raises ValueError as :func:`fill_geometry`."""
    points = np.concatenate([ring for rings in polygons_in(geometry) for ring in rings])
    return points.min(axis=0), points.max(axis=0)


def area_of(geometry: dict[str, Any]) -> float:
    """The area of a Polygon or a MultiPolygon without its holes. Raises ValueError as :func:`fill_geometry`."""
    if geometry.get("isEllipse") is True:
        low, high = bounds_of(geometry)
        return float(np.prod(high - low) * np.pi / 4)
    areas = ([_area(ring) for ring in rings] for rings in polygons_in(geometry))
    return sum(outline - sum(holes) for outline, *holes in areas)


def _area(ring: Ring) -> float:
    """The area that a ring encloses, by the shoelace formula."""
    (x, y), (after_x, after_y) = (ring - ring[0]).T, (np.roll(ring, -1, axis=0) - ring[0]).T
    return float(abs((x * after_y - y * after_x).sum()) / 2)


def polygons_in(geometry: dict[str, Any]) -> list[list[Ring]]:
    """The rings of a Polygon or a MultiPolygon. Raises ValueError as :func:`fill_geometry`."""
    coordinates = geometry.get("coordinates")
    polygons: Any = [coordinates] if geometry["type"] == "Polygon" else coordinates
    if not isinstance(polygons, list) or not all(isinstance(polygon, list) for polygon in polygons):
        raise ValueError("outlines without coordinates")
    found = [[_ring(ring) for ring in polygon] for polygon in polygons if polygon]
    if not found:
        raise ValueError("outlines without coordinates")
    return found


def _ring(points: Sequence[Any]) -> Ring:
    """(N, 2); a third coordinate is left out."""
    try:
        ring = np.array([point[:2] for point in points], np.float64).reshape(-1, 2)
    except (TypeError, ValueError, LookupError):
        raise ValueError("outlines whose coordinates are not pairs of numbers") from None
    if not len(ring) or not (np.abs(ring) <= _MOST).all():
        raise ValueError("outlines whose coordinates are not pairs of numbers")
    return ring
