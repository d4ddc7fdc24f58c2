"""Tissue as outlines in GeoJSON, as QuPath reads and writes it: in pixels of level 0."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from densepath.core.errors import UserError
from densepath.core.files import atomic_write
from densepath.core.geojson import Feature, is_area, is_excluded, polygons_in, read_features
from densepath.core.polygons import Ring, ellipse, fill
from densepath.sources.slides.slide import Slide
from densepath.sources.tiles.overview import read_overview
from densepath.sources.tiles.tissue import Tissue

_CLASS = {"name": "Tissue", "color": [0, 160, 0]}
_BEYOND = 0.02  # share of a slide's side by which outlines may exceed it
_SAMPLES = 64  # rows and columns at which the outlines in a tile are sampled


def outlines_of(tissue: Tissue, slide: Slide) -> bytes:
    """The outlines of tissue as GeoJSON for QuPath, an annotation for each connected part."""
    scale = 1 / np.array(slide.mpp[::-1])
    features = []
    for number, rings in enumerate(tissue.outlines(), 1):
        coordinates = [np.round(ring * scale, 2).tolist() for ring in rings]
        properties = {"objectType": "annotation", "name": f"tissue {number}", "classification": _CLASS}
        geometry = {"type": "Polygon", "coordinates": coordinates}
        features.append({"type": "Feature", "geometry": geometry, "properties": properties})
    return json.dumps({"type": "FeatureCollection", "features": features}).encode()


def write_outlines(path: Path, outlines: bytes) -> None:
    """Write what :func:`outlines_of` made. Raises UserError if the file cannot be written."""
    with atomic_write(path) as part:
        part.write_bytes(outlines)


def read_tissue(path: Path, slide: Slide) -> Tissue:
    """The tissue that somebody has outlined: the annotations with an area, without those of classes such as Ignore*.

    Raises:
        UserError: the file cannot be read, has no such outline, or belongs to another slide.
        CorruptImage: the slide cannot be read.
    """
    features = [each for each in read_features(path) if each.kind == "annotation" and is_area(each.geometry)]
    if all(map(is_excluded, features)):
        raise UserError(f"{path} has no annotations with an area; outline the tissue, or use --tissue auto")
    check_bounds(path, features, slide)
    overview = read_overview(slide)
    areas = [_area(each, slide) for each in sorted(features, key=is_excluded)]
    mask = np.zeros(overview.pixels.shape[:2], bool)
    try:
        _draw(areas, mask, overview.spacing, (0.0, 0.0))
    except ValueError as error:
        raise UserError(f"{path} has {error}; export it again") from error
    return OutlinedTissue(mask, overview.spacing, (0.0, 0.0), overview, areas)


@dataclass(frozen=True, eq=False)
class _Area:
    """An annotation in µm: its polygons, the lower and upper ends of all, and whether it is left out of the tissue."""

    polygons: list[list[Ring]]
    low: float
    high: float
    ignored: bool


@dataclass(frozen=True, eq=False)
class OutlinedTissue(Tissue):
    """Tissue that somebody has outlined: tiles are compared with the outlines, not with the mask.

    Args:
        areas: those of ``read_tissue``.
    """

    areas: Sequence[_Area] = ()

    def share(self, boxes_um: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """The share of tissue (B,) in rectangles of one size, to about 1/64 of their side.

        Args:
            boxes_um: (B, 4): top, left, height, width in µm.
        """
        boxes = np.asarray(boxes_um, np.float64).reshape(-1, 4)
        found = np.zeros(len(boxes))
        tops, rows = np.unique(boxes[:, 0], return_inverse=True)
        for number, top in enumerate(tops.tolist()):
            own = np.flatnonzero(rows == number)
            height, left = boxes[own, 2].max(), boxes[own, 1].min()
            near = [area for area in self.areas if area.low < top + height and area.high > top]
            if not near:
                continue
            step = height / _SAMPLES, boxes[own, 3].max() / _SAMPLES
            columns = math.ceil(((boxes[own, 1] + boxes[own, 3]).max() - left) / step[1])
            mask = np.zeros((_SAMPLES, columns), bool)
            _draw(near, mask, step, (top, left))
            found[own] = Tissue(mask, step, (top, left), self.overview).share(boxes[own])
        return found


def _area(feature: Feature, slide: Slide) -> _Area:
    polygons = polygons_in(feature.geometry)
    if feature.geometry.get("isEllipse") is True:
        polygons = [[ellipse(np.concatenate([ring for rings in polygons for ring in rings]))]]
    polygons = [[ring * slide.mpp[::-1] for ring in rings] for rings in polygons]
    heights = np.concatenate([ring[:, 1] for rings in polygons for ring in rings])
    return _Area(polygons, float(heights.min()), float(heights.max()), is_excluded(feature))


def _draw(
    areas: Sequence[_Area], mask: npt.NDArray[np.bool_], step: tuple[float, float], origin: tuple[float, float]
) -> None:
    """Draw areas on a mask, whose pixels are ``step`` µm large and whose corner is at ``origin``; each along y and x.

    Raises:
        ValueError: what is wrong, as a phrase for several outlines.
    """
    for area in areas:
        for rings in area.polygons:
            placed = [(ring - origin[::-1]) / step[::-1] for ring in rings]
            top, left, part = fill(placed, *mask.shape)
            mask[top : top + part.shape[0], left : left + part.shape[1]][part] = not area.ignored


def check_bounds(path: Path, features: Sequence[Feature], slide: Slide) -> None:
    """Refuse the outlines of another slide, which reach out of this one.

    Raises:
        UserError: they do, or have no coordinates.
    """
    corners: list[Any] = []
    for each in features:
        try:
            corners += [edge for rings in polygons_in(each.geometry) for ring in rings for edge in _bounds(ring)]
        except ValueError as error:
            raise UserError(f"{path}: {each.name} has {error}; export it again") from error
    low, high = np.min(corners, axis=0), np.max(corners, axis=0)
    size = np.array(slide.size[::-1])
    if (high > size * (1 + _BEYOND) + 1).any() or (low < -size * _BEYOND - 1).any():
        raise UserError(
            f"{path} has outlines from x {low[0]:.0f}, y {low[1]:.0f} to x {high[0]:.0f}, y {high[1]:.0f}, outside of "
            f"this slide of {size[0]} x {size[1]} px; is it of another slide, or not in pixels of level 0?"
        )


def _bounds(ring: Any) -> list[Any]:
    return [ring.min(axis=0), ring.max(axis=0)]
