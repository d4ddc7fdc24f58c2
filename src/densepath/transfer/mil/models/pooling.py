"""The mean or the maximum of the tiles, and a linear layer: what any other model should beat."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from densepath.transfer.mil.models.base import BagModel, Solver
from densepath.transfer.mil.models.blocks import Blocks

_ROWS = 4096  # tiles that are looked at together


class _Pooling(BagModel):
    """A linear layer on one vector of a bag, which is computed from the features as they are stored.

    Args:
        dim: D.
        outputs: K.
    """

    solver = Solver(1e-3, 1e-4)
    takes_stored = True

    def __init__(self, dim: int, outputs: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(dim, outputs)

    def _classify(self, vector: Tensor) -> Tensor:
        with torch.autocast(vector.device.type, enabled=False):
            return self.classifier(vector).float()


class MeanPooling(_Pooling):
    """A linear layer on the mean of the tiles, which all have the same attention."""

    def forward(self, bag: Tensor) -> tuple[Tensor, Tensor]:
        weight = self.classifier.weight
        sums = torch.zeros(bag.shape[1], dtype=weight.dtype, device=bag.device)
        for _, tiles in Blocks(bag, weight.dtype, self.prepare):
            sums += tiles.sum(0)
        return self._classify(sums / len(bag)), torch.full((len(bag),), 1 / len(bag), device=bag.device)


class MaxPooling(_Pooling):
    """A linear layer on the largest value of each feature; attention is the share of features that a tile decides."""

    def forward(self, bag: Tensor) -> tuple[Tensor, Tensor]:
        highest = bag.amax(0)  # many times as fast as with the positions
        first = torch.full_like(highest, len(bag), dtype=torch.int64)
        for start in range(0, len(bag), _ROWS):  # of a feature that is the same everywhere all tiles are found
            tile, feature = (bag[start : start + _ROWS] == highest).nonzero(as_tuple=True)
            first.scatter_reduce_(0, feature, tile + start, "amin")
        attention = torch.bincount(first, minlength=len(bag)) / bag.shape[1]
        return self._classify(self._prepared(highest)), attention

    def training_outputs(self, bag: Tensor, label: int | None) -> tuple[Tensor, Tensor | None]:
        return self._classify(self._prepared(bag.amax(0)))[None], None

    def _prepared(self, highest: Tensor) -> Tensor:
        """The standardization keeps the order of values, so the highest one is prepared only."""
        vector = highest if self.prepare is None else self.prepare(highest)
        return vector.to(self.classifier.weight.dtype)
