"""Millions of file names in two flat tensors."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor


class Names:
    """A sequence of strings that costs their bytes and eight more each.

    Tensors, because worker processes get those through shared memory, however they are started.

    Args:
        text: (bytes,) uint8, all names one after another, in the file system's encoding.
        starts: (N + 1,) int64, where each name begins in ``text``, and where the last one ends.
    """

    def __init__(self, text: Tensor, starts: Tensor) -> None:
        self.text = text
        self.starts = starts

    @classmethod
    def of(cls, strings: Iterable[str]) -> Names:
        """Take the strings one at a time, so that they may come from a generator."""
        text, starts = bytearray(), array("q", [0])
        for string in strings:
            text += os.fsencode(string)
            starts.append(len(text))
        flat = torch.frombuffer(text, dtype=torch.uint8) if text else torch.empty(0, dtype=torch.uint8)
        return cls(flat, torch.frombuffer(starts, dtype=torch.int64))

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __iter__(self) -> Iterator[str]:
        return (self[position] for position in range(len(self)))

    def __getitem__(self, position: int) -> str:
        if not 0 <= position < len(self):
            raise IndexError(position)
        start, end = self.starts[position : position + 2].tolist()
        return os.fsdecode(self.text[start:end].numpy().tobytes())
