"""Millions of file names in two flat tensors."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from itertools import islice, pairwise
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

_BLOCK = 2**14  # names that are processed at a time
_IN_MEMORY = 2**24  # bytes of a table; a longer one is written to a temporary file, which is mapped


class PathTable:
    """A sequence of strings that takes their bytes and eight more for each; millions are on disk, not in memory.

    It consists of tensors, because worker processes share those, however they are started.

    Args:
        text: (bytes,) uint8, all names one after another, in the file system's encoding.
        starts: (N + 1,) int64, the start of each name in ``text``, and the end of the last one.
    """

    def __init__(self, text: Tensor, starts: Tensor) -> None:
        self.text = text
        self.starts = starts

    @classmethod
    def of(cls, strings: Iterable[str]) -> PathTable:
        """Build the table from strings; they are consumed one at a time, so a generator is fine."""
        text, starts = _Table(), _Table()
        starts.add(bytes(8))
        names = iter(strings)
        while block := [os.fsencode(name) for name in islice(names, _BLOCK)]:
            ends = text.length + np.cumsum([len(name) for name in block], dtype="<i8")
            text.add(b"".join(block))
            starts.add(ends.tobytes())
        return cls(text.tensor(np.dtype("u1")), starts.tensor(np.dtype("<i8")))

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __iter__(self) -> Iterator[str]:
        for first in range(0, len(self), _BLOCK):
            ends = self.starts[first : first + _BLOCK + 1].tolist()
            text = self.text[ends[0] : ends[-1]].numpy().tobytes()
            for start, end in pairwise(ends):
                yield os.fsdecode(text[start - ends[0] : end - ends[0]])

    def __getitem__(self, position: int) -> str:
        if not 0 <= position < len(self):
            raise IndexError(position)
        start, end = self.starts[position : position + 2].tolist()
        return os.fsdecode(self.text[start:end].numpy().tobytes())


class _Table:
    """A buffer of bytes that grows at its end, in memory while it is small."""

    def __init__(self) -> None:
        self.length = 0
        self._recent = bytearray()
        self._file: IO[bytes] | None = None

    def add(self, data: bytes) -> None:
        self._recent += data
        self.length += len(data)
        if len(self._recent) > _IN_MEMORY:
            self._spill()

    def tensor(self, dtype: np.dtype[Any]) -> Tensor:
        """The bytes as numbers of a dtype."""
        if self._file is None:
            return torch.from_numpy(np.frombuffer(self._recent, dtype))
        self._spill()
        with self._file:
            return torch.from_numpy(np.memmap(self._file, dtype, mode="r+"))

    def _spill(self) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 (closed once it is mapped)
        self._file.write(self._recent)
        self._file.flush()
        self._recent.clear()
