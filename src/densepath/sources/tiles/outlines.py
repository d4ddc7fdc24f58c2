"""Tissue as outlines in GeoJSON, as QuPath reads and writes it: in pixels of level 0."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from densepath.core.errors import UserError
from densepath.core.files import atomic_write
from densepath.core.geojson import Feature, fill_geometry, is_area, polygons_in, read_features
from densepath.sources.slides.slide import Slide
from densepath.sources.tiles.overview import read_overview
from densepath.sources.tiles.tissue import Tissue

ENDINGS = (".geojson", ".geojson.gz", ".json", ".json.gz")
_CLASS = {"name": "Tissue", "color": [0, 160, 0]}
_BEYOND = 0.02  # share of a slide's side by which outlines may exceed it
_IGNORED = "ignore"  # QuPath's class of areas to leave out begins so


def write_outlines(path: Path, tissue: Tissue, slide: Slide) -> None:
    """Write the outlines of tissue for QuPath, an annotation for each connected part.

    Raises:
        UserError: the file cannot be written.
    """
    scale = 1 / np.array(slide.mpp[::-1])
    features = []
    for number, rings in enumerate(tissue.outlines(), 1):
        coordinates = [np.round(ring * scale, 2).tolist() for ring in rings]
        properties = {"objectType": "annotation", "name": f"tissue {number}", "classification": _CLASS}
        geometry = {"type": "Polygon", "coordinates": coordinates}
        features.append({"type": "Feature", "geometry": geometry, "properties": properties})
    with atomic_write(path) as part:
        part.write_text(json.dumps({"type": "FeatureCollection", "features": features}))


def read_tissue(path: Path, slide: Slide) -> Tissue:
    """The tissue that somebody has outlined: the annotations with an area, without those of a class "Ignore".

    Raises:
        UserError: the file cannot be read, has no such outline, or belongs to another slide.
        CorruptImage: the slide cannot be read.
    """
    features = [each for each in read_features(path) if each.kind == "annotation" and is_area(each.geometry)]
    kept = [each for each in features if not is_ignored(each)]
    if not kept:
        raise UserError(f"{path} has no annotations with an area; outline the tissue, or use --tissue auto")
    check_bounds(path, features, slide)
    overview = read_overview(slide)
    height, width = overview.pixels.shape[:2]
    mask = np.zeros((height, width), bool)
    scale = slide.mpp[1] / overview.spacing[1], slide.mpp[0] / overview.spacing[0]
    for each in sorted(features, key=is_ignored):
        try:
            top, left, part = fill_geometry(each.geometry, height, width, scale)
        except ValueError as error:
            if "no pixel" in str(error):  # smaller than one
                continue
            raise UserError(f"{path}: {each.name} has {error}; export it again") from error
        mask[top : top + part.shape[0], left : left + part.shape[1]][part] = not is_ignored(each)
    return Tissue(mask, overview.spacing, (0.0, 0.0), overview)


def is_ignored(feature: Feature) -> bool:
    """Whether an object is an area that QuPath leaves out: its class is Ignore*."""
    return (feature.category or "").lower().startswith(_IGNORED)


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
