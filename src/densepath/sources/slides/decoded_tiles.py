"""The tiles that were decoded last: neighboring parts of a slide share them."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Any

import numpy.typing as npt

_KEPT = 2**26  # bytes in a process, of all slides together


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

    def limit(self, most: int) -> None:
        """Keep at most some bytes from now on."""
        self._most = most
        self.clear()

    def get(self, key: Hashable) -> npt.NDArray[Any] | None:
        """A tile; None if it is not kept."""
        with self._lock:
            if key in self._tiles:
                self._tiles.move_to_end(key)
            return self._tiles.get(key)

    def put(self, key: Hashable, tile: npt.NDArray[Any]) -> None:
        """Keep a tile."""
        with self._lock:
            replaced = self._tiles.pop(key, None)
            self._bytes += tile.nbytes - (0 if replaced is None else replaced.nbytes)
            self._tiles[key] = tile
            while self._bytes > self._most:
                self._bytes -= self._tiles.popitem(last=False)[1].nbytes


recent_tiles = RecentTiles()
os.register_at_fork(after_in_child=recent_tiles.clear)
