"""Finds the cells of a slide or image block by block: in bounded memory, and each cell once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from densepath.annotations.cells.areas import Area, inside_any, read_at, samples, side_um
from densepath.annotations.cells.finders import Find, Finder, Found
from densepath.core.errors import UserError
from densepath.core.waiting import progress
from densepath.sources.corrupt import CorruptImage, lasting

_BLOCK = 1024  # pixels of the finder
_LEAST = 64  # pixels of a part of a block that is damaged
_EDGE = 0.5  # µm by which blocks overlap, so that no cell on a border is lost
_SAME = 2.0  # µm; two cells of neighboring blocks that are closer are one
_COARSEST = 4.5  # times the µm per pixel of the finder: coarser slides show no cells


@dataclass(eq=False)
class Search:
    """The cells that were found, in order of the blocks.

    Args:
        points: x, y in µm.
        classes, scores: as of :class:`~densepath.annotations.cells.finders.Found`, or empty.
        lost: share of the searched area that could not be read.
        error: a reason why; empty without.
    """

    points: npt.NDArray[np.float64]
    classes: list[str] = field(default_factory=list)
    scores: npt.NDArray[np.float64] | None = None
    lost: float = 0.0
    error: str = ""


def search(area: Area, boxes: npt.NDArray[np.float64] | None, finder: Finder) -> Search:
    """Find the cells of an area.

    Args:
        area: a slide or image.
        boxes: (N, 4) tiles, top, left, height, width in µm, outside of which cells are left out; None for everywhere.
        finder: finds cells in pixels.

    Raises:
        CorruptImage: nothing can be read, or a disk or a network has failed.
        UserError: the slide is too coarse.
    """
    if max(area.spacing) > finder.mpp * _COARSEST:
        raise UserError(f"its {max(area.spacing):g} µm per pixel are too coarse: cells are found at {finder.mpp:g}")
    find = finder.prepare(list(samples(area, boxes, finder.mpp)))
    parts = _Parts(area, finder, find)
    asked = 0.0
    for core in _blocks(area, boxes, finder.mpp * _BLOCK):
        asked += core[2] * core[3]
        parts.add(core)
        progress(1)
    if asked and parts.lost >= asked * (1 - 1e-9):
        raise CorruptImage("", parts.error.why if parts.error else "") from parts.error
    points = np.concatenate([np.zeros((0, 2)), *(found.points for found in parts.found)])
    kept = _once(points, np.concatenate([np.zeros(0, np.int64), *parts.numbers]))
    if boxes is not None:
        kept &= inside_any(points, boxes)
    classes = [name for found in parts.found for name in found.classes or ()]
    scores = [found.scores for found in parts.found if found.scores is not None]
    return Search(
        points[kept],
        [name for name, keep in zip(classes, kept, strict=False) if keep],
        np.concatenate(scores)[kept] if scores else None,
        parts.lost / asked if asked else 0.0,
        parts.error.why if parts.error else "",
    )


class _Parts:
    """What was found in each block."""

    def __init__(self, area: Area, finder: Finder, find: Find) -> None:
        self._area, self._find, self._mpp = area, find, finder.mpp
        self._margin = np.ceil(finder.reach / finder.mpp) * finder.mpp
        self.found: list[Found] = []  # points in µm
        self.numbers: list[npt.NDArray[np.int64]] = []  # of the part of each point
        self.lost = 0.0
        self.error: CorruptImage | None = None  # the first one

    def add(self, core: tuple[float, float, float, float]) -> None:
        """Search a block; of a damaged one its quarters."""
        top, left, height, width = core
        limits = side_um(self._area)
        start = max(0.0, top - self._margin), max(0.0, left - self._margin)
        stop = min(limits[0], top + height + self._margin), min(limits[1], left + width + self._margin)
        try:
            box = start[0], start[1], stop[0] - start[0], stop[1] - start[1]
            pixels, scale = read_at(self._area, box, self._mpp)
        except CorruptImage as error:
            lasting(error)
            self.error = self.error or error
            half = np.ceil(max(height, width) / self._mpp / 2) * self._mpp
            if half < _LEAST * self._mpp:
                self.lost += height * width
                return
            for down in (0.0, half):
                for right in (0.0, half):
                    quarter = top + down, left + right, min(half, height - down), min(half, width - right)
                    if min(quarter[2:]) > 0:
                        self.add(quarter)
            return
        found = self._find(pixels)
        points = np.asarray(found.points, np.float64).reshape(-1, 2) * scale + start[::-1]
        low, high = np.array([left, top]) - _EDGE, np.array([left + width, top + height]) + _EDGE
        inside = ((points >= low) & (points < high)).all(axis=1)
        names = None if found.classes is None else [found.classes[k] for k in np.flatnonzero(inside).tolist()]
        self.found.append(Found(points[inside], names, None if found.scores is None else found.scores[inside]))
        self.numbers.append(np.full(int(inside.sum()), len(self.numbers), np.int64))


def _blocks(
    area: Area, boxes: npt.NDArray[np.float64] | None, side: float
) -> Iterator[tuple[float, float, float, float]]:
    """The blocks of a grid over the area that any of the boxes touches."""
    limits = side_um(area)
    counts = [max(1, int(np.ceil(limit / side - 1e-9))) for limit in limits]
    wanted: npt.NDArray[Any] = np.ones(counts, np.bool_)
    if boxes is not None:
        wanted[:] = False
        first = np.floor(boxes[:, :2] / side + 1e-9).astype(int)
        last = np.ceil((boxes[:, :2] + boxes[:, 2:]) / side - 1e-9).astype(int)
        for (row, column), (end, beyond) in zip(first.tolist(), last.tolist(), strict=True):
            wanted[max(row, 0) : end, max(column, 0) : beyond] = True
    for row, column in np.argwhere(wanted).tolist():
        top, left = row * side, column * side
        yield top, left, min(side, limits[0] - top), min(side, limits[1] - left)


def _once(points: npt.NDArray[np.float64], numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Which points (N, 2) are kept if cells that two blocks (N,) found count once."""
    from scipy.spatial import cKDTree

    kept = np.ones(len(points), np.bool_)
    if len(points) and numbers[0] != numbers[-1]:
        pairs = cKDTree(points).query_pairs(_SAME, output_type="ndarray")
        for one, other in pairs[np.lexsort(pairs.T)].tolist():
            if numbers[one] != numbers[other] and kept[one]:
                kept[other] = False
    return kept
