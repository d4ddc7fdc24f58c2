"""Writing HDF5 files where the disk may be full."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO


@contextmanager
def new_hdf5(path: Path) -> Iterator[Any]:
    """A new file of h5py to write. HDF5 itself, which keeps what it could not write and tries again when the process
    ends, crashes it on a full disk.

    Raises:
        OSError: the disk is full.
    """
    import h5py

    with path.open("w+b", buffering=0) as raw:
        target = _Target(raw)
        with h5py.File(target, "w") as file:
            yield file
        if target.error is not None:
            raise target.error


class _Target(io.RawIOBase):
    """A file that takes everything and remembers the first error."""

    def __init__(self, raw: BinaryIO) -> None:
        self._file, self._position, self._end = raw.fileno(), 0, 0
        self.error: OSError | None = None

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._end}[whence]
        self._position = start + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def write(self, content: Any) -> int:
        done, size = 0, len(content)
        try:
            while self.error is None and done < size:
                done += os.pwrite(self._file, content[done:], self._position + done)
        except OSError as error:
            self.error = error
        self._position += size
        self._end = max(self._end, self._position)
        return size

    def readinto(self, buffer: Any) -> int:
        found = os.pread(self._file, len(buffer), self._position)
        buffer[:] = found.ljust(len(buffer), b"\0")
        self._position += len(buffer)
        return len(buffer)

    def truncate(self, size: int | None = None) -> int:
        self._end = self._position if size is None else size
        try:
            os.ftruncate(self._file, self._end)
        except OSError as error:
            self.error = self.error or error
        return self._end

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True
