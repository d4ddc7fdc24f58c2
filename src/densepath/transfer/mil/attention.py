"""The attention of the tiles of a slide: a table, and QuPath's GeoJSON."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from densepath.core.files import atomic_write
from densepath.transfer.mil.slide_features import SlideFeatures
from densepath.transfer.probe.metrics import Floats

ATTENTION = "attention"  # a folder


def attention_names(rows: int, classes: Sequence[str]) -> list[str]:
    """The names of the columns of attention: one, or one for each class."""
    return [ATTENTION] if rows == 1 else [f"{ATTENTION}_{name}" for name in classes]


def write_table(path: Path, slide: SlideFeatures, attention: Floats, classes: Sequence[str]) -> None:
    """A row for each tile: its corner in pixels of level 0, if it is known, and its attention.

    Args:
        path: a CSV file.
        slide: the tiles.
        attention: (1, N), or (K, N), for each class.
        classes: names of the classes.
    """
    corners = slide.corners
    with atomic_write(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(
            ["tile", *(["x", "y"] if corners is not None else []), *attention_names(len(attention), classes)]
        )
        for tile, values in enumerate(attention.T):
            place = corners[tile].tolist() if corners is not None else []
            writer.writerow([tile, *place, *(f"{value:.6g}" for value in values)])


def write_geojson(path: Path, slide: SlideFeatures, attention: Floats, classes: Sequence[str]) -> None:
    """The tiles as QuPath's objects in pixels of level 0, each with its attention as a measurement.

    Args:
        path: a GeoJSON file.
        slide: the tiles, with corners and a side.
        attention, classes: as for :func:`write_table`.
    """
    assert slide.corners is not None and slide.side is not None
    names = attention_names(len(attention), classes)
    features = []
    for (x, y), values in zip(slide.corners.tolist(), attention.T.tolist(), strict=True):
        right, bottom = x + slide.side, y + slide.side
        ring = [[x, y], [right, y], [right, bottom], [x, bottom], [x, y]]
        features.append(
            {
                "type": "Feature",
                "geometry": {"type": "Polygon", "coordinates": [ring]},
                "properties": {"objectType": "tile", "measurements": dict(zip(names, values, strict=True))},
            }
        )
    with atomic_write(path) as part:
        part.write_text(json.dumps({"type": "FeatureCollection", "features": features}) + "\n")


def extreme_tiles(attention: Floats, count: int) -> tuple[list[int], list[int]]:
    """The tiles with the highest attention, and those with the lowest, of the last row of (K, N)."""
    order = np.argsort(-attention[-1], kind="stable")
    return order[:count].tolist(), order[::-1][:count].tolist()
