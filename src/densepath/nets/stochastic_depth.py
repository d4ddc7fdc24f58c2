"""Stochastic depth whose random numbers come from outside, so that they can be a function of image and epoch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from densepath.core.errors import UserError


class DropPath(nn.Module):
    """Drops a residual branch for some rows and scales it up for the others; the identity until rows are drawn.

    Args:
        rate: probability of dropping.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.factors: Tensor | None = None  # (N,)

    def forward(self, x: Tensor) -> Tensor:
        if self.factors is None or not self.training:
            return x
        return x * self.factors.to(x.dtype).view(-1, *[1] * (x.ndim - 1))


class StochasticDepth:
    """The residual branches of a vision transformer that may be dropped, with rates that rise linearly from 0.

    Args:
        model: timm's transformer, whose drop paths are replaced.
        rate: probability of dropping a branch of the last block.

    Source: Huang et al., ECCV 2016, as in DINO (ICCV 2021).
    """

    def __init__(self, model: Any, rate: float) -> None:
        if not 0 <= rate < 1:
            raise UserError(f"the drop path rate must be at least 0 and less than 1, not {rate}")
        self.paths: list[DropPath] = []
        for block, own in zip(model.blocks, torch.linspace(0, rate, len(model.blocks)).tolist(), strict=True):
            block.drop_path1, block.drop_path2 = DropPath(own), DropPath(own)
            self.paths += [path for path in (block.drop_path1, block.drop_path2) if own > 0]

    def draw(self, numbers: Tensor | None) -> None:
        """Set what the next pass drops.

        Args:
            numbers: (N, len(paths)) uniform in [0, 1) for the rows of the pass; None to drop nothing.
        """
        for number, path in enumerate(self.paths):
            path.factors = None if numbers is None else (numbers[:, number] >= path.rate).float() / (1 - path.rate)
