"""The cells of each image of a source, as points in its coordinates."""

from __future__ import annotations

import copy
import os
from functools import lru_cache
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from densepath.annotations.cells.cell_files import MOST_CLASSES, Cells, cell_path, read_cell_rows, read_cells
from densepath.annotations.cells.matching import Row, matching
from densepath.core.digests import digest_of
from densepath.core.errors import UserError, counted, first_few, one_line, refuse
from densepath.sources.corrupt import CorruptImage
from densepath.sources.decode import read_size
from densepath.sources.names import AllNames
from densepath.sources.pixel_source import PixelSource
from densepath.sources.tiles.identity import identity_of_slide, is_identity, read_record
from densepath.sources.tiles.tile_files import SlideTiling

MOST = 4096  # cells of an image: a tile of 512 µm of dense lymphoid tissue has about as many
_ROUNDED = 32  # the number of rows is a multiple of this, so that batches rarely differ in it
_OPEN = 256  # slides whose cells are mapped into memory at a time
_SHOWN = 8  # classes in a line
_FACTS = ("slide", "width", "height", "cells", "classes")  # columns that a resumed run compares
_BAND = 1024  # cells between two of those whose rows are in memory

Opened = tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8], tuple[int, int], npt.NDArray[np.float64]]


@runtime_checkable
class TilesOfSlides(Protocol):
    """A source whose images are rectangles of slides."""

    tilings: list[SlideTiling]

    def place(self, position: int) -> tuple[SlideTiling, int]:
        """The slide of a tile, and the tile's number among those of the slide."""
        ...


class CellPoints:
    """The cells of the images of a source, for methods that take them as a prior.

    A cell belongs to every tile that contains its point, so that overlapping tiles share it. An image with more than
    :data:`MOST` cells gives every n-th of them, from top to bottom.

    Args:
        images: tiles of slides, or images in files.
        folder: the folder that ``densepath cells`` wrote for their slides, or for these images.

    Attributes:
        class_names: the classes of all slides and images; a cell's class is a position in them.

    Raises:
        UserError: the folder is unfinished or damaged, or lacks some of the slides or images, also where it has
            others of their names.
    """

    def __init__(self, images: PixelSource, folder: str | Path) -> None:
        self._images, self._folder = images, Path(folder)
        self._tiles = images if isinstance(images, TilesOfSlides) else None
        rows = read_cell_rows(folder)
        if self._tiles is not None:
            what, wanted = "slides", [(tiling.name, tiling.path) for tiling in self._tiles.tilings]
        else:
            what, wanted = "images", [("", name) for name in AllNames(images)]
        found = matching(rows, wanted, self._fits)
        missing = [path for (_, path), row in zip(wanted, found, strict=True) if not row]
        refuse(missing, f"{folder} has no cells of {what}", "run densepath cells on the same --data")
        if self._tiles is not None:
            pairs = zip(self._tiles.tilings, found, strict=True)
            others = [one_line(tiling.name) for tiling, row in pairs if not _is_extent(row, tiling.extent)]
            refuse(others, f"{folder} has the cells of slides of other sizes", "run densepath cells on the same --data")
        failed = list(dict.fromkeys(one_line(row["slide"]) for row in found if not row["cells"]))
        remedy = "see its cells.csv, correct them and run densepath cells again, or leave them out with --exclude"
        refuse(failed, f"{folder} has {what} whose cells could not be found", remedy)
        self._names = [row["slide"] for row in found]
        self._slide_of = {path: name for (_, path), name in zip(wanted, self._names, strict=True)}
        used = {row["slide"]: row for row in found}
        self.count = sum(int(row["cells"]) for row in used.values())
        celled = [row for row in used.values() if int(row["cells"])]
        self.class_names = tuple(sorted({name for row in celled for name in class_names_of(row)}))
        if len(self.class_names) > MOST_CLASSES:
            raise UserError(
                f"the cells in {folder} have {len(self.class_names)} classes, and at most {MOST_CLASSES} are possible: "
                f"{first_few(self.class_names)}; merge some where they come from"
            )
        facts = (str(used[name].get(column, "")) for name in sorted(used) for column in _FACTS)
        self._slides, self._digest = len(used), digest_of([*self.class_names, *facts])
        self._other: npt.NDArray[np.intp] | None = None  # the image whose cells each image has, if not its own
        self._open = lru_cache(_OPEN)(self._read)

    def __len__(self) -> int:
        return len(self._images)

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name != "_open"}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._open = lru_cache(_OPEN)(self._read)

    def gather(self, index: Tensor, pin: bool = False) -> Tensor:
        """The cells (B, N, 3) float32 of the images at the positions ``index`` (B,) int64.

        Args:
            index: positions in the source, on the CPU.
            pin: into page-locked memory, from where a GPU fetches them while other work runs.

        Returns:
            x, y in normalized coordinates of the image (see ``core.affine``) and the number of the class; rows of NaN
            are padding. N depends only on these images.
        """
        found = [self.of(position) for position in index.tolist()]
        most = max(map(len, found), default=0)
        out = torch.full((len(found), -(-max(most, 1) // _ROUNDED) * _ROUNDED, 3), torch.nan, pin_memory=pin)
        for row, cells in zip(out.numpy(), found, strict=True):
            row[: len(cells)] = cells
        return out

    def shuffled(self) -> CellPoints:
        """The same cells, but each image has those of another image, always the same one.

        Raises:
            UserError: there is only one image.
        """
        if len(self) < 2:
            raise UserError("the cells of one image cannot be shuffled; use more images")
        ring = np.random.default_rng(0).permutation(len(self))
        other = copy.copy(self)
        other._other = np.empty_like(ring)
        other._other[ring] = np.roll(ring, 1)
        return other

    def of(self, position: int) -> npt.NDArray[np.float32]:
        """The cells (N, 3) of one image, as in :meth:`gather`, without padding."""
        if self._other is not None:
            position = int(self._other[position])
        if self._tiles is None:
            points, classes, extent, _ = self._open(self._names[position])
            low, side = np.zeros(2), np.array(extent[::-1], np.float64)
            rows: npt.NDArray[np.intp] = np.arange(len(points))
        else:
            tiling, number = self._tiles.place(position)
            points, classes, _, bands = self._open(self._slide_of[tiling.path])
            low = tiling.corners[number].astype(np.float64)
            side = tiling.size * tiling.mpp / np.array(tiling.spacing[::-1])
            first, last = (_first_from(points, bands, y) for y in (low[1], low[1] + side[1]))
            x = points[first:last, 0]
            rows = first + np.flatnonzero((x >= low[0]) & (x < low[0] + side[0]))
        if len(rows) > MOST:
            rows = rows[np.arange(MOST) * len(rows) // MOST]
        out = np.empty((len(rows), 3), np.float32)
        out[:, :2] = (points[rows] - low) / side * 2 - 1
        out[:, 2] = classes[rows]
        return out

    def name_of(self, path: str) -> str:
        """The name in ``cells.csv`` of a slide or an image of the source, given its path."""
        return self._slide_of[path]

    def of_slide(self, path: str) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
        """All cells (N, 2) of a slide or image of the source, given its path, in pixels of level 0; and their classes
        (N,) as positions in ``class_names``."""
        points, classes, *_ = self._open(self._slide_of[path])
        return points, classes

    def digest(self) -> str:
        """A digest of the table of these slides or images, by which a run that is resumed notices others."""
        return self._digest

    def digest_of_results(self) -> str:
        """A digest of the files of these slides' or images' cells, as their records know them; "" without records."""
        results = [(read_record(self._folder, name) or {}).get("result") for name in sorted({*self._names})]
        return "" if None in results else digest_of(map(str, results))

    def describe(self) -> str:
        """The number of cells, their classes, and how many slides or images there are, in a line."""
        named = f" of {counted(len(self.class_names), 'class', 'classes')}: {first_few(self.class_names, _SHOWN)}"
        classes = named if len(self.class_names) > 1 else ""
        where = counted(self._slides, "image" if self._tiles is None else "slide")
        return f"{counted(self.count, 'cell')}{classes}, in {where}"

    def _fits(self, position: int, row: Row) -> bool:
        """Whether a row is that of a slide or an image whose file has moved: of its size, and made from its file."""
        if self._tiles is not None:
            tiling = self._tiles.tilings[position]
            path, extent, exact = tiling.path, tiling.extent, True
        else:
            path, exact = self._images.names(position), os.path.exists(self._images.names(position))
            try:
                size = read_size(path) if exact else self._images.sizes(torch.tensor([position]))[0].tolist()
            except CorruptImage:
                return False
            extent = size[0], size[1]
        record = read_record(self._folder, row["slide"]) if os.path.exists(path) else None
        if record is not None and not is_identity(record["identity"][:2], identity_of_slide(path), path):
            return False
        return bool(row.get("height") or record) and _is_extent(row, extent, exact)

    def _read(self, name: str) -> Opened:
        """The cells of a slide or an image, with classes as positions in ``class_names``."""
        cells: Cells = read_cells(cell_path(self._folder, name))
        bands = cells.points[::_BAND, 1].astype(np.float64)
        if not len(cells) or cells.class_names == self.class_names:
            return cells.points, cells.classes, cells.extent, bands
        try:
            numbers = np.array([self.class_names.index(own) for own in cells.class_names], np.uint8)
        except ValueError:
            raise UserError(
                f"{cell_path(self._folder, name)} has other classes than {self._folder / 'cells.csv'} says; "
                "run densepath cells again"
            ) from None
        return cells.points, numbers[cells.classes], cells.extent, bands


def class_names_of(row: Row) -> list[str]:
    """The classes in a row of ``cells.csv``, where they are separated by semicolons."""
    return [name for name in row["classes"].split(";") if name]


def _first_from(points: npt.NDArray[np.float32], bands: npt.NDArray[np.float64], y: float) -> int:
    """The first of points, sorted by y, at or below ``y``; in a file only one band of them is read."""
    start = max(int(np.searchsorted(bands, y)) - 1, 0) * _BAND
    return start + int(np.searchsorted(points[start : start + _BAND, 1].astype(np.float64), y))


def _is_extent(row: Row, extent: tuple[int, int], exact: bool = True) -> bool:
    """Whether a row, if it says so, is of this height and width, or up to rounding of their ratio."""
    if not row.get("height") or not row.get("width"):
        return True
    height, width = int(row["height"]), int(row["width"])
    if exact:
        return (height, width) == extent
    return abs(height * extent[1] - width * extent[0]) <= max(height, width)  # packed images may be smaller
