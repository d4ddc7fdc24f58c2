"""The cells of slides and images in files: an HDF5 file for each, in the folder of a ``cells`` run."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from densepath.core.csv_files import read_rows, write_rows
from densepath.core.errors import UserError, errors_as
from densepath.core.files import atomic_write
from densepath.sources.tiles.tile_files import h5py_module

CELLS = "cells.csv"
COLUMNS = ("slide", "path", "mpp", "width", "height", "cells", "classes", "problem")
MOST_CLASSES = 256
_FOLDER, _SUFFIX = "cells", ".h5"
_ONE_CLASS: tuple[str, ...] = ("cell",)
NO_CLASS = "unclassified"


@dataclass(frozen=True, eq=False)
class Cells:
    """The cells of one slide or image.

    Args:
        points: (N, 2) float32: x, y in pixels of level 0, from the upper left corner of the upper left pixel.
        extent: height and width of level 0 in pixels.
        classes: (N,) uint8: positions in ``class_names``.
        class_names: names of the classes.
        scores: (N,) float32, or None.
    """

    points: npt.NDArray[np.float32]
    extent: tuple[int, int]
    classes: npt.NDArray[np.uint8]
    class_names: tuple[str, ...] = _ONE_CLASS
    scores: npt.NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.points)

    @classmethod
    def of(
        cls,
        points: Any,
        extent: tuple[int, int],
        names: Sequence[str | None] | None = None,
        scores: Any = None,
    ) -> Cells:
        """Cells in any order, each with the name of its class (None for none), sorted by y and then by x.

        Raises:
            UserError: there are more classes than a file can hold.
        """
        points = np.asarray(points, np.float32).reshape(-1, 2)
        order = np.lexsort((points[:, 0], points[:, 1]))
        known, classes = _ONE_CLASS, np.zeros(len(points), np.uint8)
        if names is not None and any(name is not None for name in names):
            given = [
                "" if name is None else str(name).replace(";", ",") for name in names
            ]  # ; separates them in tables
            found, numbers = np.unique(np.array(given), return_inverse=True)
            if len(found) > MOST_CLASSES:
                raise UserError(f"the cells have {len(found)} classes, and at most {MOST_CLASSES} are possible")
            known, classes = tuple(name or NO_CLASS for name in found.tolist()), numbers.astype(np.uint8)
        sorted_scores = None if scores is None else np.asarray(scores, np.float32)[order]
        return cls(points[order], extent, classes[order], known, sorted_scores)


def cell_path(folder: str | Path, name: str) -> Path:
    """The file of the cells of a slide or image, by its name in ``cells.csv``."""
    return Path(folder) / _FOLDER / f"{name}{_SUFFIX}"


def write_cells(path: str | Path, cells: Cells) -> None:
    """Write the cells of a slide or image. Raises UserError if the disk is full, or h5py is not installed."""
    content = io.BytesIO()  # on a full disk h5py would not say so
    with h5py_module().File(content, "w") as file:
        points = file.create_dataset("points", data=cells.points)  # contiguous: mapped into memory by readers
        points.attrs.update({"height": cells.extent[0], "width": cells.extent[1], "unit": "px of level 0"})
        classes = file.create_dataset("classes", data=cells.classes)
        classes.attrs["class_names"] = list(cells.class_names)
        if cells.scores is not None:
            file.create_dataset("scores", data=cells.scores)
    with atomic_write(path) as part:
        part.write_bytes(content.getbuffer())


def read_cells(path: str | Path) -> Cells:
    """Read what :func:`write_cells` wrote; points and classes are mapped into memory.

    Raises:
        UserError: the file is missing or damaged, or of other software.
    """
    h5py = h5py_module()

    def refusal(error: Exception) -> UserError:
        why = "the file is missing" if not os.path.exists(path) else "damaged, or not written by densepath cells"
        return UserError(f"the cells {path} cannot be read ({why}); run densepath cells again")

    with errors_as(refusal):
        with h5py.File(path) as file:
            points, classes = (_mapped(file[name], path) for name in ("points", "classes"))
            notes, names = file["points"].attrs, file["classes"].attrs["class_names"]
            extent = int(notes["height"]), int(notes["width"])
            scores = file["scores"][:] if "scores" in file else None
        if points.shape != (len(classes), 2) or points.dtype != np.float32 or classes.dtype != np.uint8:
            raise ValueError("other arrays")
        return Cells(points, extent, classes, tuple(str(name) for name in names), scores)


def read_cell_rows(folder: str | Path) -> list[dict[str, str]]:
    """The rows of a folder's ``cells.csv``.

    Raises:
        UserError: it is not a folder of cells, is unfinished or damaged.
    """
    path = Path(folder) / CELLS
    if not path.exists():
        begun = (Path(folder) / _FOLDER).is_dir()
        remedy = "continue with the same densepath cells command" if begun else "write one with densepath cells"
        raise UserError(f"{folder} is {'an unfinished' if begun else 'not a'} folder of cells; {remedy}")
    rows = read_rows(path, "run densepath cells again", ("slide", "path", "problem"))
    if any(not row["slide"] or not row["path"] for row in rows):
        raise UserError(f"{path} is not a table of densepath cells; run it again")
    return rows


def write_cell_rows(folder: str | Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write a folder's ``cells.csv``: a row for each slide or image, with the columns :data:`COLUMNS`."""
    write_rows(Path(folder) / CELLS, COLUMNS, rows)


def _mapped(dataset: Any, path: str | Path) -> npt.NDArray[Any]:
    """A contiguous array of an HDF5 file, mapped into memory; any other is read."""
    offset = dataset.id.get_offset()
    if offset is None:
        return np.asarray(dataset[:])
    return np.memmap(path, dataset.dtype, "r", offset, dataset.shape)
