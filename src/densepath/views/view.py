"""The input of a method: views, and the batch that contains them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from densepath.core.random import uniform

# View numbers that no view has: they separate the random numbers of a method from those of the views.
_METHOD = 0xFFFF
_COMMON = 0xFFFE  # for numbers of the whole batch


@dataclass(frozen=True, eq=False)
class View:
    """Pixels and the map that made them.

    Args:
        pixels: (K * B, C, *size) float32, normalized. Of K crops of each image, row k * B + b is crop k of image b.
        map: (K * B, d, d + 1) from the view's coordinates to those of its images (see ``core.affine``), on the CPU.
    """

    pixels: Tensor
    map: Tensor


@dataclass(frozen=True, eq=False)
class Batch:
    """The views of a batch of images, by name, and the position in the run.

    Args:
        views: the views that the method declared.
        index: (B,) int64, on the CPU: the images' positions in their source.
        seed: the run's seed.
        step: 0-based step of the run.
        epoch: epochs done so far, with the fraction.
        progress: the share of the run that is done, in [0, 1].
        extras: annotations of each image, by name, on the views' device: "class" (B,) int32 (a loss may need
            ``.long()``), "regions" (B, *grid) int16, "cells" (B, N, d) float32.
        draws_epoch: the epoch of the method's random numbers; by default that of ``epoch``.
    """

    views: Mapping[str, View]
    index: Tensor
    seed: int
    step: int
    epoch: float
    progress: float
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    draws_epoch: int | None = None

    def __getitem__(self, name: str) -> View:
        return self.views[name]

    def __len__(self) -> int:
        return len(self.index)

    @property
    def drawn_in(self) -> int:
        """The epoch of the random numbers of the method, and of its views."""
        return int(self.epoch) if self.draws_epoch is None else self.draws_epoch

    def at(self, epoch: float, progress: float) -> Batch:
        """The same batch, with its random numbers, at another position in the run."""
        return replace(self, epoch=epoch, progress=progress, draws_epoch=self.drawn_in)

    def uniform(self, count: int, first: int = 0) -> Tensor:
        """(B, count) numbers in [0, 1) for the method's own use, on the CPU: a function of image and epoch.

        ``first`` is the stream of the first four; numbers for another purpose are of other streams.
        """
        streams = torch.arange(first, first - (-count // 4))
        return uniform(self.seed, self.drawn_in, self.index[:, None], _METHOD, streams).flatten(1)[:, :count]

    def common_uniform(self, count: int) -> Tensor:
        """(count,) numbers in [0, 1) for the batch as a whole, on the CPU: a function of the step on all processes."""
        streams = torch.arange(-(-count // 4))
        return uniform(self.seed, self.step, torch.zeros((), dtype=torch.int64), _COMMON, streams).flatten()[:count]
