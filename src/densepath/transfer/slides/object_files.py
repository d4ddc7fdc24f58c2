"""The objects of a slide in files, one by one: outlines for QuPath in pixels of level 0, and a table."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from densepath.core.csv_files import LineFeeds
from densepath.core.files import atomic_write
from densepath.transfer.detection.found import FoundObject
from densepath.transfer.detection.prediction_files import (
    COLUMNS,
    GEOJSON_END,
    GEOJSON_START,
    MICRONS,
    Grid,
    feature_of,
    row_of,
)


class ObjectFiles:
    """Writes the objects of a slide; both files appear when all are written.

    Args:
        name: of the slide.
        classes: names of the labels 1, 2, ...
        grid: where level 0 lies in the detector's pixels.
        geojson, table: the files.

    Attributes:
        count: objects that were written so far.
    """

    def __init__(self, name: str, classes: Sequence[str], grid: Grid, geojson: Path, table: Path) -> None:
        self._name, self._classes, self._grid = name, classes, grid
        self._paths = geojson, table
        self._stack = ExitStack()
        self.count = 0

    def __enter__(self) -> ObjectFiles:
        with ExitStack() as stack:
            parts = [stack.enter_context(atomic_write(path)) for path in self._paths]
            self._geojson = stack.enter_context(parts[0].open("w"))
            table = parts[1].open("w", newline="", encoding="utf-8", errors="surrogateescape")
            self._rows = csv.DictWriter(LineFeeds(stack.enter_context(table)), [*COLUMNS, *MICRONS])
            self._rows.writeheader()
            self._geojson.write(GEOJSON_START)
            self._stack = stack.pop_all()
        return self

    def add(self, found: FoundObject) -> None:
        """Write an object."""
        self.count += 1
        feature = feature_of(found, self.count, self._classes, self._grid, "detection")
        self._geojson.write((",\n" if self.count > 1 else "\n") + json.dumps(feature))
        self._rows.writerow(row_of(found, self._name, self.count, self._classes, self._grid))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._geojson.write(GEOJSON_END)
        self._stack.__exit__(kind, error, trace)


def polygons_in(geojson: Path) -> Iterator[list[npt.NDArray[np.float64]]]:
    """The rings (N, 2) x, y of each object of a file of :class:`ObjectFiles`, in pixels of level 0."""
    with geojson.open() as file:
        for line in file:
            if not line.startswith('{"type": "Feature",'):
                continue
            geometry = json.loads(line.rstrip().rstrip(","))["geometry"]
            parts: list[Any] = geometry["coordinates"]
            polygons = [parts] if geometry["type"] == "Polygon" else parts
            yield [np.array(ring) for polygon in polygons for ring in polygon]


def centroids_in(table: Path) -> npt.NDArray[np.float64]:
    """(N, 2) x, y of the objects of a table, in pixels of level 0."""
    with table.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        found = [(float(row["centroid_x"]), float(row["centroid_y"])) for row in csv.DictReader(file)]
    return np.array(found, np.float64).reshape(-1, 2)
