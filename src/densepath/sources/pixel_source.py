"""What a source of images is: the protocol that training, probes and detectors read pixels through."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class PerImage(Protocol):
    """What is known of each image of a source: its class, its label map, its cells."""

    def __len__(self) -> int:
        """How many images it knows of: as many as the source holds."""
        ...

    def gather(self, index: Tensor, pin: bool = False) -> Tensor:
        """What is known of the images at the positions ``index`` (B,) int64: (B, ...), on the CPU.

        Args:
            index: positions in the source, on the CPU.
            pin: into page-locked memory, from where a GPU fetches it while other work runs.
        """
        ...
