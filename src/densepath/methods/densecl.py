"""DenseCL: contrasts each position of a query's features with one of its key's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, Unpack

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
from densepath.methods.option_effects import Needed, With
from densepath.nets.backbones import Backbone
from densepath.nets.heads import DenseHead
from densepath.views.view import Batch


class DenseCL(MoCoV2):
    """Dense contrastive learning.

    L = (1 - lambda) * L_q + lambda * L_r (Equation 3). L_q is the loss of MoCo-v2; L_r (Equation 2) is InfoNCE over all
    positions of f5, which a second head projects. The positive of a query position is the projected key position whose
    *backbone* feature is the most similar to its own (Equation 4); the negatives are a second queue, with one vector
    per image: the mean of the key's projected positions.

    As the geometry of the views is known, the match may also be exact (``match="geometry"``): the positive is the key's
    projected map, bilinearly sampled where the center of the query position is in the key view. Positions outside of
    the key view are left out, and L_r is the mean over the others, of all processes. The paper does not have this.

    As in the released code lambda is constant, positions are not pooled to a smaller grid, and the mean of a key's
    positions is taken before they become unit vectors. ``standardize`` is over the positions of all images.

    Args:
        backbone: the query encoder.
        match: how the positive of a query position is found: by "features", or by "geometry".
        dense_weight: weight lambda of the dense loss.
        **moco: as in :class:`MoCoV2`; both heads have the same widths, both queues the same size.

    Source: Wang et al., CVPR 2021, arXiv 2011.09157.
    """

    needed_options: ClassVar[Needed] = {"match": (With("dense_weight"),)}

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
            raise UserError(f"the dense weight must be between 0 and 1, not {dense_weight}")
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
        instance_loss, spread = self.instance_loss(query, key)
        dense_loss, statistics = self.dense_loss(batch, query, key)
        total = (1 - self.dense_weight) * instance_loss + self.dense_weight * dense_loss
        terms = {"instance_loss": instance_loss.detach(), "dense_loss": dense_loss.detach()}
        return Losses(total, terms, {**statistics, **spread})

    def chance(self) -> Mapping[str, float]:
        return {**super().chance(), "dense_loss": math.log(self.dense_queue.size + 1)}

    def dense_loss(self, batch: Batch, query: Tensor, key: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """L_r of two feature maps (B, C, h, w); the means of the keys' positions join their queue after the step."""
        q, k = self.project_positions(query, key)
        mask, statistics = None, {}
        if self.match == "features":
            positive = k.gather(1, most_similar(query, key).unsqueeze(2).expand_as(k))
        else:
            positive, mask = self.sample_key(batch, k, query.shape[2:])
            statistics = {"matched_positions": mask.float().mean()}
        q, positive = F.normalize(q, dim=2).flatten(0, 1), F.normalize(positive, dim=2).flatten(0, 1)
        losses = info_nce(q, positive, self.dense_queue.keys(), self.temperature, mask)
        self.dense_queue.enqueue(F.normalize(k.mean(1), dim=1))
        return losses.mean() if mask is None else masked_mean(losses, mask), statistics

    def project_positions(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings (B, positions, dim), not normalized, of the positions of features (B, C, h, w)."""
        q = _positions(full_precision(self.dense_head(query)))
        with torch.no_grad():
            k = _positions(full_precision(self.key_dense_head(key)))
        if self.standardize:
            q, k = (standardize(x.flatten(0, 1)).view_as(x) for x in (q, k))
        return q, k

    def sample_key(self, batch: Batch, k: Tensor, grid: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The key's embeddings (B, positions, dim) at the query's positions, and (B * positions,) which are valid."""
        sampled, valid = warp(k.transpose(1, 2).unflatten(2, grid), batch["key"].map, batch["query"].map, grid)
        return _positions(sampled), valid.flatten()


@torch.no_grad()
def most_similar(query: Tensor, key: Tensor) -> Tensor:
    """For each position of the query's features (B, C, h, w) the key's with the largest cosine: (B, positions)."""
    with torch.autocast(query.device.type, enabled=False):
        # The norm of a query's feature does not change which cosine is the largest.
        q, k = _positions(full_precision(query)), F.normalize(_positions(full_precision(key)), dim=2)
        return torch.bmm(q, k.transpose(1, 2)).argmax(2)


def _positions(x: Tensor) -> Tensor:
    """(B, C, h, w) as (B, positions, C)."""
    return x.flatten(2).transpose(1, 2)
