"""Hausdorff distances between true and found objects."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, lru_cache

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from densepath.transfer.detection.object_overlap import Objects, Overlap

_STEP = 4  # squares of 16 x 16 pixels are measured first, then those of 4 x 4 in the farthest ones, then pixels
_FEW = 256  # pixels that are measured without that
_BOXES, _MORE = 8, 4  # number of boxes in the first search, and the factor for each further one
_SHIFTS = np.stack(np.divmod(np.arange(_STEP**2), _STEP), axis=1)  # of the parts of a square


def hausdorff_distances(overlap: Overlap) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The Hausdorff distance of each true and each found object to its counterpart, in pixels.

    The counterpart is the object that shares most pixels; if none shares any, the object at the smallest Hausdorff
    distance; in an image where the other side has none, the distance is infinite.
    """
    sides = overlap.truth, overlap.found
    shapes = _Shapes(overlap.truth), _Shapes(overlap.found)
    # Edges of bounding boxes bound the distance from below: most objects need no closer look.
    trees = [cKDTree(side.boxes) for side in sides]

    @cache
    def between(true: int, found: int) -> float:
        return max(shapes[0].farthest(true, shapes[1], found), shapes[1].farthest(found, shapes[0], true))

    distances = []
    for side in (0, 1):
        out = np.full(len(sides[side]), np.inf)
        for number, pair in enumerate(overlap.best(side, overlap.pixels)):
            if pair >= 0:
                out[number] = between(*overlap.pairs[pair].tolist())
                continue
            for other, least in _nearest(trees[1 - side], sides[side].boxes[number]):
                if least >= out[number]:
                    break
                out[number] = min(out[number], between(*((number, other) if side == 0 else (other, number))))
        distances.append(out)
    return distances[0], distances[1]


def _nearest(boxes: cKDTree, box: npt.NDArray[np.int64]) -> Iterator[tuple[int, float]]:
    """The boxes with the nearest edges to those of a box, and the largest difference of an edge, nearest first."""
    seen: set[int] = set()  # of equally near ones, another search may find others
    count = _BOXES
    while len(seen) < boxes.n:
        bounds, others = boxes.query(box, range(1, min(count, boxes.n) + 1), p=np.inf)
        for other, bound in zip(others.tolist(), bounds.tolist(), strict=True):
            if other not in seen:
                seen.add(other)
                yield other, bound
        count *= _MORE


class _Shapes:
    """The pixels of objects."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self.border = lru_cache(maxsize=1024)(self._border)

    def farthest(self, number: int, others: _Shapes, other: int) -> float:
        """The largest distance of a pixel of an object from another object."""
        top, left, bottom, right = self._objects.boxes[number]
        window, corner = np.s_[top:bottom, left:right], self._objects.boxes[number, :2]
        beyond = self._objects.map[window] == self._objects.labels[number]
        beyond &= others._objects.map[window] != others._objects.labels[other]
        count = int(np.count_nonzero(beyond))
        if count == 0:
            return 0.0
        border = others.border(other)
        if count <= _FEW:
            return float(border.query(np.argwhere(beyond) + corner)[0].max())
        pixels = np.pad(beyond, [(0, -length % _STEP**2) for length in beyond.shape])
        parts_of = _reduced(pixels)
        places, side = np.argwhere(_reduced(parts_of)), _STEP**2
        for finer in (parts_of, pixels):
            middle = (side - 1) / 2
            distances = border.query(places * side + middle + corner)[0]
            # The farthest pixel is at most this far from the middle of its square, as is any pixel of the farthest one.
            near = places[distances >= distances.max() - 2 * middle * 2**0.5 - 1e-6]
            parts = (near[:, None] * _STEP + _SHIFTS).reshape(-1, 2)
            places, side = parts[finer[*parts.T]], side // _STEP
        return float(border.query(places + corner)[0].max())

    def _border(self, number: int) -> cKDTree:
        """The pixels at an object's edge: the nearest pixel from outside is one of them."""
        top, left, bottom, right = self._objects.boxes[number]
        mask = np.pad(self._objects.map[top:bottom, left:right] == self._objects.labels[number], 1)
        inner = mask[:-2, 1:-1] & mask[2:, 1:-1] & mask[1:-1, :-2] & mask[1:-1, 2:]
        return cKDTree(np.argwhere(mask[1:-1, 1:-1] & ~inner) + self._objects.boxes[number, :2])


def _reduced(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Which squares of a mask have a pixel."""
    rows = np.logical_or.reduce([mask[k::_STEP] for k in range(_STEP)])
    return np.logical_or.reduce([rows[:, k::_STEP] for k in range(_STEP)])
