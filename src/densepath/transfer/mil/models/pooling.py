"""The mean or the maximum of the tiles, and a linear layer: what any other model should beat."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from densepath.transfer.mil.models.base import BagModel, Solver


class _Pooling(BagModel):
    """A linear layer on one vector of a bag.

    Args:
        dim: D.
        outputs: K.
    """

    solver = Solver(1e-3, 1e-4)

    def __init__(self, dim: int, outputs: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(dim, outputs)


class MeanPooling(_Pooling):
    """A linear layer on the mean of the tiles, which all have the same attention."""

    def forward(self, bag: Tensor) -> tuple[Tensor, Tensor]:
        return self.classifier(bag.float().mean(0)).float(), torch.full((len(bag),), 1 / len(bag), device=bag.device)


class MaxPooling(_Pooling):
    """A linear layer on the largest value of each feature; attention is the share of features that a tile decides."""

    def forward(self, bag: Tensor) -> tuple[Tensor, Tensor]:
        highest, tile = bag.float().max(0)
        return self.classifier(highest).float(), torch.bincount(tile, minlength=len(bag)) / bag.shape[1]
