"""The protocols of annotations of a source's images."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor


class PerImage(Protocol):
    """Annotations of each image of a source: its class, its label map, its cells."""

    def __len__(self) -> int:
        """The number of images, equal to that of the source."""
        ...

    def gather(self, index: Tensor, pin: bool = False) -> Tensor:
        """The annotations of the images at the positions ``index`` (B,) int64: (B, ...), on the CPU.

        Args:
            index: positions in the source, on the CPU.
            pin: into page-locked memory, from where a GPU fetches it while other work runs.
        """
        ...


@runtime_checkable
class PerBox(Protocol):
    """Annotations of the pixels of each image, read in the same boxes as these."""

    def gather_boxes(self, index: Tensor, boxes: Tensor | None, pin: bool = False) -> Tensor:
        """The annotations of the images at the positions ``index`` (B,), or of boxes (B, 2, d) of them: (B, *canvas).

        Arguments as for :meth:`PixelSource.gather`.
        """
        ...
