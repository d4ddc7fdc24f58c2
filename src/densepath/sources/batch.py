"""What a loader hands to the views: images of one batch on a common canvas."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class ImageBatch:
    """Images of varied sizes on one canvas, and where the run stands.

    Args:
        pixels: (B, H, W, 3) uint8, each image in the upper left corner, zeros right of it and below.
        sizes: (B, 2) int64, each image's height and width in pixels, on the CPU.
        index: (B,) int64, each image's position in its source, on the CPU.
        step: how many batches of one process the run made before this one.
        epoch: how many epochs the run made before this batch, fractions included.
        progress: the share of the run before this batch, in [0, 1).
        damaged: the files found damaged while this batch was made.
        labels: (B, h, w) integers, each image's label map, for methods that asked for them.
    """

    pixels: Tensor
    sizes: Tensor
    index: Tensor
    step: int = 0
    epoch: float = 0.0
    progress: float = 0.0
    damaged: tuple[str, ...] = ()
    labels: Tensor | None = None

    def __len__(self) -> int:
        return len(self.index)

    def to(self, device: torch.device | str, non_blocking: bool = True) -> ImageBatch:
        """The batch with its pixels and labels on another device. Views are drawn from the rest, on the CPU."""
        labels = None if self.labels is None else self.labels.to(device, non_blocking=non_blocking)
        return replace(self, pixels=self.pixels.to(device, non_blocking=non_blocking), labels=labels)


def new_canvas(count: int, height: int, width: int, pin: bool = False) -> Tensor:
    """Room for images, (count, height, width, 3) uint8, its content undefined; page-locked with ``pin``."""
    return torch.empty((count, height, width, 3), dtype=torch.uint8, pin_memory=pin)


def lay(canvas: Any, images: Iterable[Any]) -> None:
    """Put images into the upper left corners of a canvas and zeros around them.

    Args:
        canvas: (B, H, W, 3), an array or a tensor. Arrays on a CPU: copies of tensors would start threads there that
            compete with the training.
        images: B arrays or tensors of the same kind, (h, w, 3).
    """
    for place, image in zip(canvas, images, strict=True):
        height, width = image.shape[:2]
        place[:height, :width] = image
        place[height:] = 0
        place[:height, width:] = 0
