"""Tiles that QuPath cut from a slide and named by their place, with outlines in pixels of the slide."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from densepath.core.geojson import Feature, moved, polygons_in
from densepath.core.streams import say

_PLACE = re.compile(r"\[((?:[a-z]=[\d.]+,?)+)\]")
_LARGE = 1  # pixels by which the size in a name, divided by its downsample, may differ from that of the image


@dataclass(frozen=True)
class Place:
    """Where a tile lies.

    Args:
        left, top: its corner, in pixels of the slide.
        step: pixels of the slide for one of the tile.
    """

    left: float
    top: float
    step: float


def place_of(image: Path, size: tuple[int, int]) -> Place | None:
    """The place in the name of a tile, as in ``slide [d=2,x=1024,y=2048,w=96,h=80].png``.

    Args:
        image: the file.
        size: its height and width in pixels.

    Returns:
        The place; None if the name has none that fits the size.
    """
    found = _PLACE.search(image.name)
    try:
        values = (
            {key: float(value) for key, _, value in (p.partition("=") for p in found[1].split(","))} if found else {}
        )
        place, (width, height) = Place(values["x"], values["y"], values.get("d", 1.0)), (values["w"], values["h"])
    except (KeyError, ValueError):
        return None
    if place.step <= 0 or max(abs(height / place.step - size[0]), abs(width / place.step - size[1])) > _LARGE:
        return None
    return place


def in_tiles(
    features: dict[Path, list[Feature]], image_of: Mapping[Path, Path], sizes: Mapping[Path, tuple[int, int]]
) -> dict[Path, list[Feature]]:
    """Objects in pixels of their tiles: moved by the places in the tiles' names, if these explain all outlines.

    They do if each outline reaches its tile when it is moved, and at least one does not as it is.

    Args:
        features: the objects of each GeoJSON file.
        image_of: the tile of each.
        sizes: height and width of each tile.
    """
    tiles = {path: (place_of(image_of[path], sizes[image_of[path]]), sizes[image_of[path]]) for path in features}
    plain = explained = True
    for path, found in features.items():
        place, size = tiles[path]
        for feature in found:
            if (box := _bounds(feature.geometry)) is None:
                continue
            if place is None:
                return features
            plain = plain and _reaches(box, size)
            explained = explained and _reaches((box - (place.left, place.top)) / place.step, size)
    if plain or not explained:
        return features
    say("densepath: outlines are in pixels of the slides: they are moved by x, y and d in the names of the tiles")
    return {path: [_moved(f, tiles[path][0]) for f in found] for path, found in features.items()}


def _bounds(geometry: Any) -> np.ndarray | None:
    """The lower and upper corner (2, 2) x, y of an outline; None if it has no coordinates."""
    try:
        points = np.concatenate([ring for rings in polygons_in(geometry) for ring in rings])
    except ValueError:
        return None
    return np.stack([points.min(0), points.max(0)])


def _reaches(box: np.ndarray, size: Sequence[int]) -> bool:
    return bool((box[1] > 0).all() and (box[0] < size[::-1]).all())


def _moved(feature: Feature, place: Place | None) -> Feature:
    if place is None:
        return feature
    shifts = (place.left, place.top), place.step
    return replace(feature, geometry=moved(feature.geometry, *shifts), nucleus=moved(feature.nucleus, *shifts))
