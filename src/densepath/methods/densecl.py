"""DenseCL: contrast of cells, each cell of a query's features against one of its key's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor

from densepath.core.affine import warp
from densepath.core.errors import UserError
from densepath.core.losses import full_precision, info_nce, masked_mean, standardize
from densepath.core.momentum import Momentum
from densepath.core.queue import Queue
from densepath.methods.base import Losses
from densepath.methods.moco_v2 import MoCoOptions, MoCoV2
from densepath.nets.backbones import Backbone
from densepath.nets.heads import DenseHead
from densepath.views.view import Batch


class DenseCL(MoCoV2):
    """Dense contrastive learning.

    L = (1 - lambda) * L_q + lambda * L_r (Equation 3). L_q is the loss of MoCo-v2; L_r (Equation 2) is InfoNCE over all
    cells of f5, which a head of their own projects. A query cell's positive is the projected key cell whose *backbone*
    feature is the most similar to its own (Equation 4); negatives are a second queue, of one vector an image: the mean
    of the key's projected cells.

    Our views know where they lie, so the match may also be exact (``match="geometry"``): the positive is what the key's
    projected cells show, bilinearly sampled, where the query cell's center lies in the key view. Cells that lie outside
    it take no part, and L_r is the mean over the others, of all processes. The paper does not have this.

    As in the released code lambda is constant, cells are not pooled to a smaller grid, and the mean of a key's cells is
    taken before they become unit vectors. ``standardize`` is over the cells of all images.

    Args:
        backbone: the query encoder.
        match: how query cells find their positives: by "features", or by "geometry".
        dense_weight: lambda.
        **moco: as in :class:`MoCoV2`; both heads have the same widths, both queues the same size.

    Source: Wang et al., CVPR 2021, arXiv 2011.09157.
    """

    def __init__(
        self,
        backbone: Backbone,
        match: Literal["features", "geometry"] = "features",
        dense_weight: float = 0.5,
        **moco: Unpack[MoCoOptions],
    ) -> None:
        super().__init__(backbone, **moco)
        if match not in ("features", "geometry"):
            raise UserError(f"unknown match {match!r}; there are: features, geometry")
        if not 0 <= dense_weight <= 1:
            raise UserError(f"the dense weight must lie between 0 and 1, not {dense_weight}")
        channels = backbone.channels[backbone.deepest]
        self.dense_head = DenseHead(channels, self.hidden_dim, self.dim, backbone.ndim)
        self.key_dense_head = Momentum(self.dense_head)
        self.dense_queue = Queue(self.queue.size, self.dim)
        self.match = match
        self.dense_weight = dense_weight

    def before_step(self, batch: Batch) -> None:
        super().before_step(batch)
        self.key_dense_head.update(self.dense_head, self.momentum)

    def forward(self, batch: Batch) -> Losses:
        query, key = self.encode(batch)
        instance_loss = self.instance_loss(query, key)
        dense_loss, statistics = self.dense_loss(batch, query, key)
        total = (1 - self.dense_weight) * instance_loss + self.dense_weight * dense_loss
        terms = {"instance_loss": instance_loss.detach(), "dense_loss": dense_loss.detach()}
        return Losses(total, terms, statistics)

    def dense_loss(self, batch: Batch, query: Tensor, key: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """L_r of two feature maps (B, C, h, w); the means of the keys' cells join their queue after the step."""
        q, k = self.project_cells(query, key)
        mask, statistics = None, {}
        if self.match == "features":
            positive = k.gather(1, most_similar(query, key).unsqueeze(2).expand_as(k))
        else:
            positive, mask = self.carry_over(batch, k, query.shape[2:])
            statistics = {"matched_cells": mask.float().mean()}
        q, positive = F.normalize(q, dim=2).flatten(0, 1), F.normalize(positive, dim=2).flatten(0, 1)
        losses = info_nce(q, positive, self.dense_queue.keys(), self.temperature, mask)
        self.dense_queue.enqueue(F.normalize(k.mean(1), dim=1))
        return losses.mean() if mask is None else masked_mean(losses, mask), statistics

    def project_cells(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings (B, cells, dim), of any length, of the cells of features (B, C, h, w)."""
        q = _cells(full_precision(self.dense_head(query)))
        with torch.no_grad():
            k = _cells(full_precision(self.key_dense_head(key)))
        if self.standardize:
            q, k = (standardize(x.flatten(0, 1)).view_as(x) for x in (q, k))
        return q, k

    def carry_over(self, batch: Batch, k: Tensor, grid: Sequence[int]) -> tuple[Tensor, Tensor]:
        """What the key's cells (B, cells, dim) show at those of the query, and (B * cells,) whether they show it."""
        there, valid = warp(k.transpose(1, 2).unflatten(2, grid), batch["key"].map, batch["query"].map, grid)
        return _cells(there), valid.flatten()


@torch.no_grad()
def most_similar(query: Tensor, key: Tensor) -> Tensor:
    """For each cell of the query's features (B, C, h, w) the cell of the key's with the largest cosine: (B, cells)."""
    with torch.autocast(query.device.type, enabled=False):
        # The length of a query's feature does not change which cosine is the largest.
        q, k = _cells(full_precision(query)), F.normalize(_cells(full_precision(key)), dim=2)
        return torch.bmm(q, k.transpose(1, 2)).argmax(2)


def _cells(x: Tensor) -> Tensor:
    """(B, C, h, w) as (B, cells, C)."""
    return x.flatten(2).transpose(1, 2)
