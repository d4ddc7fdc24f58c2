"""What a method sees: views, and the batch that holds them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from densepath.core.random import uniform

# A number that no view of an image has: what a method draws is apart from what its views drew.
_METHOD = 0xFFFF
_COMMON = 0xFFFE  # and apart from what it draws for a whole batch


@dataclass(frozen=True)
class View:
    """Pixels and the map that made them.

    Args:
        pixels: (B, C, S, S) float32, normalized.
        map: (B, 2, 3) from the view's coordinates to those of its images (see ``core.affine``), on the CPU.
    """

    pixels: Tensor
    map: Tensor


@dataclass(frozen=True)
class Batch:
    """The views of a batch of images, by name, and where in the run they stand.

    Args:
        views: the views that the method declared.
        index: (B,) int64, on the CPU: the images' positions in their source.
        seed: the run's seed.
        step: 0-based step of the run.
        epoch: epochs done so far, with the fraction.
        progress: the share of the run that is done, in [0, 1].
        extras: what is known of each image, by name, on the views' device: "class" (B,), "regions" (B, *grid), "cells"
            (B, N, d).
    """

    views: Mapping[str, View]
    index: Tensor
    seed: int
    step: int
    epoch: float
    progress: float
    extras: Mapping[str, Tensor] = field(default_factory=dict)

    def __getitem__(self, name: str) -> View:
        return self.views[name]

    def __len__(self) -> int:
        return len(self.index)

    def uniform(self, count: int) -> Tensor:
        """(B, count) numbers in [0, 1) for the method's own use, on the CPU: a function of image and epoch."""
        slots = torch.arange(-(-count // 4))
        return uniform(self.seed, int(self.epoch), self.index[:, None], _METHOD, slots).flatten(1)[:, :count]

    def common_uniform(self, count: int) -> Tensor:
        """(count,) numbers in [0, 1) for the batch as a whole, on the CPU: a function of the step on all processes."""
        slots = torch.arange(-(-count // 4))
        return uniform(self.seed, self.step, torch.zeros((), dtype=torch.int64), _COMMON, slots).flatten()[:count]
