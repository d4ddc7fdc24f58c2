"""DSMIL with the linear queries and values of its paper, in three passes over the stored features."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densepath.transfer.mil.models.base import initialize
from densepath.transfer.mil.models.blocks import Blocks, attention_mean
from densepath.transfer.mil.models.dsmil import DSMIL, QUERY


class LinearDSMIL(DSMIL):
    """:class:`DSMIL` with the queries q = W_q h + b_q and the values v = W_v h + b_v of its paper.

    Neither is computed for all tiles. The score of a tile, q . q_c / sqrt(128) with the query q_c of the critical tile,
    is h . (W_q^T q_c) / sqrt(128) and a constant, which the softmax drops; the mean of the values is W_v applied to the
    mean of the tiles. So a training step passes three times over the float16 features of a bag, in full precision.

    Source: Li, Li, Eliceiri, CVPR 2021, and its code in the first released version. The present version has the
    queries of :class:`DSMIL`, and its values are the features.
    """

    takes_stored = True

    def __init__(self, dim: int, outputs: int) -> None:
        super().__init__(dim, outputs)
        self.query = nn.Linear(dim, QUERY)
        self.value = nn.Linear(dim, dim)
        initialize(self, "orthogonal")

    def _streams(self, bag: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        blocks = Blocks(bag, self.tile_classifier.weight.dtype, self.prepare)
        critical, scores = self._critical(blocks)
        with torch.autocast(bag.device.type, enabled=False):
            keys = self.query(blocks.tiles(critical)) @ self.query.weight / QUERY**0.5  # (K, D)
            mean, attention = attention_mean(keys, blocks)
            output = F.linear(self.value(mean).flatten(), self.classifier.weight.flatten(1), self.classifier.bias)
        return output.float(), attention.float(), scores.float()
