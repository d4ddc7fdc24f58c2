"""The batches of a loader: images on a common canvas."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from densepath.sources.pixel_source import Gathered, PixelSpec


@dataclass(frozen=True, eq=False)
class ImageBatch:
    """Images of varied sizes on one canvas, and the position in the run.

    Args:
        pixels: (B, *spatial, C) of any dtype, each image in the low corner of the canvas, zeros around it.
        sizes: (B, d) int64, each image's size in pixels, in the order of the tensor's axes, on the CPU.
        index: (B,) int64, each image's position in its source, on the CPU.
        step: number of batches of one process before this one in the run.
        epoch: epochs done before this batch, with the fraction.
        progress: the share of the run before this batch, in [0, 1).
        corrupt: the files found corrupt while this batch was made.
        boxes, extent: the box of each image that ``pixels`` holds, and its pixels on the canvas, as in
            :class:`~densepath.sources.pixel_source.Gathered`.
        spacing: (B, d) float32 on the CPU: the distance of neighboring pixels along each axis, in µm or mm; None where
            unknown.
        plan: the plan of the views, if it was drawn before the pixels were read; else None.
        extras: annotations of each image, by name: "class" (B,) int32, "regions" (B, *grid) int16, "cells"
            (B, N, d) float32.
        spec: the meaning of the pixels' values, as their source has it; None where unknown.
    """

    pixels: Tensor
    sizes: Tensor
    index: Tensor
    step: int = 0
    epoch: float = 0.0
    progress: float = 0.0
    corrupt: tuple[str, ...] = ()
    boxes: Tensor | None = None
    extent: Tensor | None = None
    spacing: Tensor | None = None
    plan: Any = None
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    spec: PixelSpec | None = None

    def __len__(self) -> int:
        return len(self.index)

    @classmethod
    def of(cls, gathered: Gathered, **others: Any) -> ImageBatch:
        """The batch of images that a source gave, with other fields."""
        g = gathered
        return cls(g.pixels, g.sizes, g.index, boxes=g.boxes, extent=g.extent, **others)

    def to(self, device: torch.device | str, non_blocking: bool = True) -> ImageBatch:
        """The batch with its pixels and extras on another device. The rest stays on the CPU, where views are drawn."""
        extras = {name: extra.to(device, non_blocking=non_blocking) for name, extra in self.extras.items()}
        return replace(self, pixels=self.pixels.to(device, non_blocking=non_blocking), extras=extras)


def new_canvas(
    count: int, size: Sequence[int], channels: int = 3, dtype: torch.dtype = torch.uint8, pin: bool = False
) -> Tensor:
    """An uninitialized canvas for images, (count, *size, channels); page-locked with ``pin``."""
    return torch.empty((count, *size, channels), dtype=dtype, pin_memory=pin)


def fill_canvas(canvas: Any, images: Iterable[Any]) -> None:
    """Copy images into the low corners of a canvas, with zeros around them.

    Args:
        canvas: (B, *spatial, C), an array or a tensor. Use arrays on a CPU: copies of tensors would start threads
            that compete with the training.
        images: B arrays or tensors of the same kind, (*size, C).
    """
    for row, image in zip(canvas, images, strict=True):
        corner = tuple(slice(length) for length in image.shape[:-1])
        row[corner] = image
        for axis, length in enumerate(image.shape[:-1]):
            row[(*corner[:axis], slice(length, None))] = 0


def box_of(image: Any, box: Any) -> Any:
    """The part of an image (*spatial, C) within a box ((low, ...), (high, ...)), which is clipped to the image."""
    return image[tuple(slice(int(low), int(high)) for low, high in zip(*box, strict=True))]


def join(parts: list[Gathered], pin: bool = False) -> Gathered:
    """Copy the parts of a batch onto one canvas."""
    sizes = torch.cat([part.sizes for part in parts])
    index = torch.cat([part.index for part in parts])
    boxes, extent = (
        None if parts[0].__dict__[name] is None else torch.cat([part.__dict__[name] for part in parts])
        for name in ("boxes", "extent")
    )
    first = parts[0].pixels
    size = [max(lengths) for lengths in zip(*(part.pixels.shape[1:-1] for part in parts), strict=True)]
    canvas = new_canvas(len(index), size, first.shape[-1], first.dtype, pin)
    fill_canvas(canvas.numpy(), (image for part in parts for image in part.pixels.numpy()))
    corrupt = {position: what for part in parts for position, what in part.corrupt.items()}
    return Gathered(canvas, sizes, index, corrupt, boxes, extent)
