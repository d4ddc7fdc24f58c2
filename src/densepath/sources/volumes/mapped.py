"""Files that are mapped into memory: the most recent ones, with a bound on the memory that their use counts as."""

from __future__ import annotations

import mmap
import os
import threading
from collections import OrderedDict
from typing import Any

import numpy as np
import numpy.typing as npt

_MOST = 128  # files; each keeps a descriptor open
_TOUCHED = 512 * 2**20  # bytes


class MappedFiles:
    """Files as arrays of bytes, which the system reads where they are touched.

    What was touched counts as memory of the process until it is given back, which happens whenever that may be 512 MiB:
    the memory depends neither on the number of files nor on how long they are used. The system keeps what it has read
    as long as there is room. Threads may share an instance.
    """

    def __init__(self) -> None:
        self._maps: OrderedDict[str, tuple[mmap.mmap, npt.NDArray[np.uint8]]] = OrderedDict()
        self._lock = threading.Lock()
        self._touched = 0

    def __reduce__(self) -> Any:
        return MappedFiles, ()

    def get(self, path: str, size: int, touched: int) -> npt.NDArray[np.uint8]:
        """The bytes of a file.

        Args:
            path: the file.
            size: its size in bytes.
            touched: how many of them will be read, at most.

        Raises:
            EOFError: it has another size: to touch a mapped file beyond its end would kill the process.
            OSError: it cannot be opened.
        """
        if os.stat(path).st_size != size:
            raise EOFError
        with self._lock:
            mapped = self._maps.pop(path, None)
            if mapped is None:
                with open(path, "rb") as file:
                    bytes_ = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                mapped = bytes_, np.frombuffer(bytes_, np.uint8)
            self._maps[path] = mapped
            if len(self._maps) > _MOST:
                self._maps.popitem(last=False)
            self._touched += touched
            if self._touched > _TOUCHED:
                for each, _ in self._maps.values():
                    each.madvise(mmap.MADV_DONTNEED)
                self._touched = touched
        return mapped[1]
