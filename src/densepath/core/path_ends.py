"""Finds paths by their last parts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Generic, TypeVar

T = TypeVar("T")
Parts = tuple[str, ...]  # of a path: its folders, and the file


class PathEnds(Generic[T]):
    """Items by the last parts of their paths.

    Only the ends that are asked for are indexed: many paths have many parts.

    Args:
        items: the parts of a path, and an item that belongs to it. Several may have the same path.
    """

    def __init__(self, items: Iterable[tuple[Parts, T]]) -> None:
        self._ends: dict[Parts, list[tuple[Parts, T]]] = defaultdict(list)
        self._divided: set[Parts] = set()  # ends whose paths are indexed by one more part
        for parts, item in items:
            self._ends[parts[-1:]].append((parts, item))

    def closest(self, parts: Parts) -> list[T]:
        """The items whose paths share most last parts with a path, at least the last, in their order."""
        count, found = 1, self._ends.get(parts[-1:], [])
        while len(found) > 1 and count < len(parts):
            self._divide(parts[-count:], found)
            longer = self._ends.get(parts[-count - 1 :])
            if longer is None:
                break
            count, found = count + 1, longer
        return [item for _, item in found]

    def _divide(self, end: Parts, found: list[tuple[Parts, T]]) -> None:
        if end not in self._divided:
            self._divided.add(end)
            for parts, item in found:
                if len(parts) > len(end):
                    self._ends[parts[-len(end) - 1 :]].append((parts, item))
