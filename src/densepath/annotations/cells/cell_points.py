"""The cells of each image of a source, as points in its coordinates."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from densepath.annotations.cells.cell_files import Cells, cell_path, read_cell_rows, read_cells
from densepath.core.errors import UserError, first_few, refuse
from densepath.sources.pixel_source import AllNames, PixelSource
from densepath.sources.tiles.tile_files import SlideTiling

MOST = 4096  # cells of an image: a tile of 512 µm of dense lymphoid tissue has about as many
_ROUNDED = 32  # the number of rows is a multiple of this, so that batches rarely differ in it
_OPEN = 256  # slides whose cells are mapped into memory at a time
_SHOWN = 8  # classes in a line


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
        UserError: the folder is unfinished or damaged, or lacks some of the slides or images.
    """

    def __init__(self, images: PixelSource, folder: str | Path) -> None:
        self._images, self._folder = images, Path(folder)
        self._tiles = images if isinstance(images, TilesOfSlides) else None
        rows = read_cell_rows(folder)
        self._without = {row["slide"] for row in rows if not row["cells"]}
        if self._tiles is not None:
            what, wanted = "slides", [(tiling.name, tiling.path) for tiling in self._tiles.tilings]
        else:
            what, wanted = "images", [("", name) for name in AllNames(images)]
        names = _matching(rows, wanted)
        missing = [path for (_, path), name in zip(wanted, names, strict=True) if name is None]
        refuse(missing, f"{folder} has no cells of {what}", "run densepath cells on the same --data")
        self._names = [str(name) for name in names]
        self._slide_of = {path: name for (_, path), name in zip(wanted, self._names, strict=True)}
        used = set(self._names)
        self.count = sum(int(row["cells"] or 0) for row in rows if row["slide"] in used)
        classes = dict.fromkeys(name for row in rows if row["slide"] in used for name in class_names_of(row))
        self.class_names = tuple(sorted(classes))
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

    def of(self, position: int) -> npt.NDArray[np.float32]:
        """The cells (N, 3) of one image, as in :meth:`gather`, without padding."""
        if self._tiles is None:
            points, classes, extent = self._open(self._names[position])
            low, side = np.zeros(2), np.array(extent[::-1], np.float64)
            rows: npt.NDArray[np.intp] = np.arange(len(points))
        else:
            tiling, number = self._tiles.place(position)
            points, classes, _ = self._open(self._slide_of[tiling.path])
            low = tiling.corners[number].astype(np.float64)
            side = tiling.size * tiling.mpp / np.array(tiling.spacing[::-1])
            first, last = np.searchsorted(points[:, 1], (low[1], low[1] + side[1]))
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

    def describe(self) -> str:
        """The number of cells, their classes, and how many slides or images have none, in a line."""
        slides = dict.fromkeys(self._names)
        failed = f"; none could be found in {lost}" if (lost := len(self._without.intersection(slides))) else ""
        named = f" of {len(self.class_names)} classes: {first_few(self.class_names, _SHOWN)}"
        classes = named if len(self.class_names) > 1 else ""
        what = "images" if self._tiles is None else "slides"
        return f"{self.count:,} cells{classes}, in {len(slides)} {what}{failed}"

    def _read(self, name: str) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8], tuple[int, int]]:
        """Points, classes as positions in ``class_names``, and the extent, of a slide or an image."""
        if name in self._without:
            return np.zeros((0, 2), np.float32), np.zeros(0, np.uint8), (1, 1)
        cells: Cells = read_cells(cell_path(self._folder, name))
        if cells.class_names == self.class_names:
            return cells.points, cells.classes, cells.extent
        try:
            numbers = np.array([self.class_names.index(own) for own in cells.class_names], np.uint8)
        except ValueError:
            raise UserError(
                f"{cell_path(self._folder, name)} has other classes than {self._folder / 'cells.csv'} says; "
                "run densepath cells again"
            ) from None
        return cells.points, numbers[cells.classes], cells.extent


def class_names_of(row: dict[str, str]) -> list[str]:
    """The classes in a row of ``cells.csv``, where they are separated by semicolons."""
    return [name for name in row["classes"].split(";") if name]


def _matching(rows: Sequence[dict[str, str]], wanted: Sequence[tuple[str, str]]) -> list[str | None]:
    """The name in ``cells.csv`` of each slide or image, given its own name and path; None where there is none.

    The path may have changed: then the row is taken whose path has the same last parts, as many as are needed.
    """
    by_path = {_parts(row["path"]): row["slide"] for row in rows}
    by_file: dict[str, list[tuple[str, ...]]] = defaultdict(list)
    for parts in by_path:
        by_file[parts[-1]].append(parts)
    found: list[str | None] = []
    for name, path in wanted:
        parts = _parts(path)
        absolute = _parts(os.path.abspath(path))
        close = by_file.get(parts[-1], [])
        best = max(((_shared(absolute, other), other) for other in close), default=None)
        if absolute in by_path or best is None:
            found.append(by_path.get(absolute))
            continue
        tied = sum(_shared(absolute, other) == best[0] for other in close) > 1
        same_name = [by_path[other] for other in close if name and by_path[other] == name]
        found.append(same_name[0] if same_name else None if tied else by_path[best[1]])
    pairs = {(name, os.path.abspath(path)) for name, (_, path) in zip(found, wanted, strict=True) if name}
    doubled = [name for name, times in Counter(name for name, _ in pairs).items() if times > 1]
    if doubled:
        raise UserError(
            f"several images match the cells of {first_few(doubled)}; run densepath cells on the same --data"
        )
    return found


def _parts(path: str) -> tuple[str, ...]:
    return tuple(part for part in unicodedata.normalize("NFC", path).split("/") if part not in ("", "."))


def _shared(path: tuple[str, ...], other: tuple[str, ...]) -> int:
    """How many last parts two paths share."""
    count = 0
    for one, two in zip(reversed(path), reversed(other), strict=False):
        if one != two:
            break
        count += 1
    return count
