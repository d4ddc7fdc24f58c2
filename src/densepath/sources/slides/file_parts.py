"""Parts of files, read without a position that threads or forked processes would share."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache

from densepath.sources.corrupt import CorruptImage
from densepath.sources.patience import disk_failed, patiently

_OPEN = 128  # files that are kept open in a process


@dataclass(frozen=True)
class FileParts:
    """A file that is opened when it is first read, and again if many others were read meanwhile.

    Args:
        path: the file.
        identity: size in bytes and time of the last change in ns, by which a changed file is noticed.
    """

    path: str
    identity: tuple[int, int]

    @classmethod
    def of(cls, path: str) -> FileParts:
        """The parts of a file as it is now."""
        return cls(path, _identity(os.stat(path)))

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self.identity[0]

    def read(self, offset: int, count: int) -> bytes:
        """Bytes of the file; where its disk fails, after further attempts.

        Raises:
            CorruptImage: the file ends before them, has changed, or cannot be read.
        """
        if offset + count > self.size:
            raise CorruptImage(self.path, f"a tile ends at byte {offset + count:,} of {self.size:,}; copy it again")
        try:
            data = patiently(self.path, lambda: self._read(offset, count))
        except OSError as error:
            raise CorruptImage(self.path, f"cannot be read ({error.strerror})") from error
        if len(data) < count:
            raise CorruptImage(self.path, "became shorter while it was read")
        return data

    def _read(self, offset: int, count: int) -> bytes:
        opened = _opened(self)
        descriptor = opened.descriptor()  # held while it is read: another thread may have it dropped
        try:
            return os.pread(descriptor.number, count, offset)
        except OSError as error:
            if disk_failed(error):
                opened.drop()
            raise


class _Descriptor:
    """A file descriptor, closed when the last thread that reads it is done."""

    number = -1

    def __init__(self, file: FileParts) -> None:
        self.number = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC)
        if _identity(os.fstat(self.number)) != file.identity:
            raise CorruptImage(file.path, "changed after it was opened; start again")

    def __del__(self) -> None:
        if self.number >= 0:
            os.close(self.number)


class _OpenFile:
    """The descriptor of a file, which is opened again after its disk has failed: it may be stale."""

    def __init__(self, file: FileParts) -> None:
        self._file = file
        self._descriptor: _Descriptor | None = None

    def descriptor(self) -> _Descriptor:
        """An open one. Raises OSError, CorruptImage."""
        descriptor = self._descriptor
        if descriptor is None:
            descriptor = self._descriptor = _Descriptor(self._file)
        return descriptor

    def drop(self) -> None:
        """Let the last reader close the descriptor."""
        self._descriptor = None


# Least recently used files are dropped here, and closed by their last reader.
_opened = lru_cache(_OPEN)(_OpenFile)


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_size, status.st_mtime_ns
