"""The tiles that were decoded last: neighboring parts of a slide share them."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

_KEPT = 2**26  # bytes in a process, of all slides together
_USEFUL, _INERTIA = 0.25, 32  # the share of tiles found, over so many


_choice = threading.local()


@contextmanager
def decoding_in_part() -> Iterator[None]:
    """In this thread, of a tile only the rows that are needed may be decoded.

    This is for pre-training: it is faster at random places, but damage that the decoder takes for pixels goes
    unnoticed, which a whole tile would show.
    """
    before, _choice.in_part = decodes_in_part(), True
    try:
        yield
    finally:
        _choice.in_part = before


def decodes_in_part() -> bool:
    """Whether tiles may be decoded in part."""
    return getattr(_choice, "in_part", False)


class RecentTiles:
    """A cache of arrays that drops the least recently used ones.

    Args:
        most: bytes that are kept.
    """

    def __init__(self, most: int = _KEPT) -> None:
        self._most = most
        self.clear()

    def clear(self) -> None:
        """Forget all tiles. A forked process starts so: another thread may have held the lock."""
        self._lock = threading.Lock()
        self._tiles: OrderedDict[Hashable, npt.NDArray[Any]] = OrderedDict()
        self._bytes = 0
        self._found = 2 * _USEFUL  # share of the last tiles; at first unknown

    @property
    def useful(self) -> bool:
        """Whether many of the tiles that were asked for lately were kept: places are read in order, or again."""
        return self._found > _USEFUL

    def limit(self, most: int) -> None:
        """Keep at most some bytes from now on."""
        self._most = most
        self.clear()

    def get(self, key: Hashable, rows: int = 0) -> npt.NDArray[Any] | None:
        """A tile; None if it is not kept, or with fewer rows."""
        with self._lock:
            tile = self._tiles.get(key)
            found = tile is not None and len(tile) >= rows
            if found:
                self._tiles.move_to_end(key)
            self._found += (found - self._found) / _INERTIA
            return tile if found else None

    def put(self, key: Hashable, tile: npt.NDArray[Any]) -> None:
        """Keep a tile."""
        with self._lock:
            replaced = self._tiles.pop(key, None)
            self._bytes += _held(tile) - (0 if replaced is None else _held(replaced))
            self._tiles[key] = tile
            while self._bytes > self._most:
                self._bytes -= _held(self._tiles.popitem(last=False)[1])


def _held(tile: npt.NDArray[Any]) -> int:
    """The bytes that stay in memory with a tile: of the first rows of an array, those of all of it."""
    return tile.base.nbytes if isinstance(tile.base, np.ndarray) else tile.nbytes


recent_tiles = RecentTiles()
os.register_at_fork(after_in_child=recent_tiles.clear)
