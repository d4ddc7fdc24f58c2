"""The names of all images of a source."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol


class Named(Protocol):
    """Images that have names: a source, or a file of their features."""

    def __len__(self) -> int: ...

    def names(self, position: int) -> str: ...


class AllNames:
    """The names of all images of a source, in their order; it can be iterated several times."""

    def __init__(self, images: Named) -> None:
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def __iter__(self) -> Iterator[str]:
        return map(self._images.names, range(len(self._images)))
