"""Which true and which found objects of an image overlap, and by how many pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

LabelMap = npt.NDArray[np.integer[Any]]
Integers = npt.NDArray[np.int64]
_AT_ONCE = 2**22  # pixels: label maps of slides are compared in bands
_REDUCE = (np.add, np.minimum, np.minimum, np.maximum, np.maximum)  # pixels, top, left, bottom, right


@dataclass(frozen=True, eq=False)
class Objects:
    """The N objects of a label map, in the order of their labels.

    Args:
        map: the label map (H, W).
        labels: (N,) their labels, from 1.
        areas: (N,) their pixels.
        boxes: (N, 4) top, left, bottom, right in pixels.
    """

    map: LabelMap
    labels: Integers
    areas: Integers
    boxes: Integers

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class Overlap:
    """The objects of two label maps, and the K pairs that share pixels.

    Args:
        truth, found: the objects.
        pairs: (K, 2) positions in ``truth`` and ``found``, from 0; sorted.
        pixels: (K,) shared pixels.
    """

    truth: Objects
    found: Objects
    pairs: Integers
    pixels: Integers

    @property
    def ious(self) -> npt.NDArray[np.float64]:
        """(K,) the intersection over union of each pair."""
        unions = self.truth.areas[self.pairs[:, 0]] + self.found.areas[self.pairs[:, 1]] - self.pixels
        return self.pixels / unions

    def best(self, side: int, weights: npt.NDArray[Any]) -> Integers:
        """The pair in which each object has its largest weight: (N,) positions in ``pairs``, -1 for no pair.

        Args:
            side: 0 for the true objects, 1 for the found ones.
            weights: (K,). Of equal ones, the first pair counts: that with the smallest label.
        """
        chosen = np.full(len((self.truth, self.found)[side]), -1)
        order = np.lexsort((-np.arange(len(weights)), weights))  # the best one is written last
        chosen[self.pairs[order, side]] = order
        return chosen


def find_overlap(truth: LabelMap, found: LabelMap) -> Overlap:
    """Compare two label maps (H, W) of one size: each positive number is an object, connected or not.

    Takes one pass over the pixels; memory grows with the objects, not with objects times pixels.
    """
    if truth.shape != found.shape or truth.ndim != 2:
        raise ValueError(f"label maps of {truth.shape} and {found.shape}")
    base = int(found.max(initial=0)) + 1
    rows = max(1, _AT_ONCE // max(1, truth.shape[1]))
    bands = [_runs(truth[top : top + rows], found[top : top + rows], base, top) for top in range(0, len(truth), rows)]
    codes, table = _merged(*(np.concatenate(parts, axis=-1) for parts in zip(*bands, strict=True)))
    sides = codes // base, codes % base
    objects = []
    for labels, of in zip(sides, (truth, found), strict=True):
        known, sums = _merged(labels[labels > 0], table[:, labels > 0])
        objects.append(Objects(of, known, sums[0], sums[1:].T))
    both = (sides[0] > 0) & (sides[1] > 0)
    places = [np.searchsorted(each.labels, side[both]) for each, side in zip(objects, sides, strict=True)]
    return Overlap(objects[0], objects[1], np.stack(places, axis=1), table[0, both])


def _runs(truth: LabelMap, found: LabelMap, base: int, top: int) -> tuple[Integers, Integers]:
    """The combinations of labels in a band, as one number each, with pixels and bounding box (5, K)."""
    codes = np.maximum(truth, 0).astype(np.int64) * base + np.maximum(found, 0)
    starts = np.ones(codes.shape, bool)
    starts[:, 1:] = codes[:, 1:] != codes[:, :-1]
    places = np.flatnonzero(starts)
    lengths = np.diff(places, append=codes.size)
    row, left = np.divmod(places, codes.shape[1])
    table = np.stack((lengths, top + row, left, top + row + 1, left + lengths))
    seen = codes.reshape(-1)[places]
    return _merged(seen[seen > 0], table[:, seen > 0])


def _merged(codes: Integers, table: Integers) -> tuple[Integers, Integers]:
    """Each number once, in order, with the sum of its pixels and the union of its boxes."""
    order = np.argsort(codes, kind="stable")
    codes, table = codes[order], table[:, order]
    first = np.flatnonzero(np.diff(codes, prepend=0))
    rows = [reduce.reduceat(row, first) for reduce, row in zip(_REDUCE, table, strict=True)]
    return codes[first], np.stack(rows)
