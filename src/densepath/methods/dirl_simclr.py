"""DiRL and Cellback on SimCLR: contrasts each vector of regions within a batch."""

from __future__ import annotations

from typing import Unpack

import torch.nn.functional as F
from torch import nn

from densepath.core.errors import UserError
from densepath.core.losses import full_precision, nt_xent
from densepath.methods.base import Losses
from densepath.methods.compared_regions import ComparedRegions, RegionOptions
from densepath.methods.region_vectors import region_vectors
from densepath.methods.simclr import SimCLR
from densepath.nets.backbones import Backbone
from densepath.nets.heads import MLPHead
from densepath.views.augment import Augment
from densepath.views.declarations import Declaration
from densepath.views.view import Batch


class DiRLSimCLR(ComparedRegions):
    """The loss of :class:`~densepath.methods.dirl.DiRL` with NT-Xent in place of DINO's (Table 8).

    L = lambda1 (L_c + L_b) + lambda2 (L_cc + L_bb + L_cb + L_bc), each the loss of :class:`SimCLR` on the two views of
    those images of the batch of which both views have the region, with a head of its own. Heads are two layers without
    batch norms, as in DSMIL's SimCLR, which the paper uses; their initialization is that of :class:`MLPHead`, and views
    are those of :class:`SimCLR`.

    Args:
        backbone: the encoder; a vision transformer, unless ``interactions`` are off.
        dim: dimension of the embeddings.
        hidden_dim: width of the hidden layers of the heads; by default the backbone's.
        temperature: temperature of the contrastive losses.
        **regions: as in :class:`~densepath.methods.compared_regions.ComparedRegions`.

    Source: Kapse et al., "Attention De-sparsification Matters" (DiRL), Table 8; Li et al., DSMIL, CVPR 2021.
    """

    def __init__(
        self,
        backbone: Backbone,
        dim: int = 256,
        hidden_dim: int | None = None,
        temperature: float = 0.5,
        **regions: Unpack[RegionOptions],
    ) -> None:
        if not temperature > 0:
            raise UserError(f"the temperature must be positive, not {temperature}")
        super().__init__(backbone, **regions)
        width = backbone.channels[backbone.deepest]
        hidden = width if hidden_dim is None else hidden_dim
        self.heads = nn.ModuleDict({name: MLPHead(width, hidden, dim) for name in self.weights})
        self.temperature = temperature

    @staticmethod
    def views(augment: Augment | None = None) -> dict[str, Declaration]:
        return SimCLR.views(augment)

    def forward(self, batch: Batch) -> Losses:
        vectors = region_vectors(self.prior, batch, self.both(batch), self.backbone, self.block)
        losses = {}
        for name, rows, present in self.existing(vectors):
            z = F.normalize(full_precision(self.heads[name](rows)), dim=1)
            (own, other), (first, second) = present.chunk(2), z.chunk(2)
            losses[name] = nt_xent(first, second, self.temperature, own & other)
        return self.summed(losses, vectors, {})

    def check_batch(self, batch_size: int, processes: int = 1) -> None:
        super().check_batch(batch_size, processes)
        if batch_size < 2:
            raise UserError("a batch of one image has no negatives; use two or more")
