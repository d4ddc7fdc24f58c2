"""DiRL and Cellback on BYOL: each vector of regions predicts that of the other view by a momentum network."""

from __future__ import annotations

from typing import Unpack

import torch
import torch.nn.functional as F
from torch import nn

from densepath.core.distillation import deviation
from densepath.core.errors import UserError
from densepath.core.losses import full_precision, masked_mean
from densepath.core.momentum import Momentum
from densepath.core.schedules import cosine
from densepath.methods.base import Losses
from densepath.methods.byol import BYOL
from densepath.methods.compared_regions import ComparedRegions, RegionOptions
from densepath.methods.region_vectors import region_vectors
from densepath.nets.backbones import Backbone
from densepath.nets.heads import NormedHead
from densepath.views.augment import Augment
from densepath.views.declarations import Declaration
from densepath.views.view import Batch


class DiRLBYOL(ComparedRegions):
    """The loss of :class:`~densepath.methods.dirl.DiRL` with that of :class:`BYOL` in place of DINO's (Table 8).

    L = lambda1 (L_c + L_b) + lambda2 (L_cc + L_bb + L_cb + L_bc), each |q(z1) - z2'|^2 + |q(z2) - z1'|^2, the mean over
    those images of which both views have the region, with a projector and a predictor of its own. Both views pass
    together: batch norms of the heads compute statistics over the vectors of both views that exist. The paper gives no
    details of its BYOL.

    Args:
        backbone: the online encoder; a vision transformer, unless ``interactions`` are off.
        dim, hidden_dim: as in :class:`BYOL`, with the values of its paper.
        momentum: momentum of the target network at the start of the run.
        **regions: as in :class:`~densepath.methods.compared_regions.ComparedRegions`.

    Source: Kapse et al., "Attention De-sparsification Matters" (DiRL), Table 8; Grill et al., BYOL, NeurIPS 2020.
    """

    batch_norm = "synchronized"

    def __init__(
        self,
        backbone: Backbone,
        dim: int = 256,
        hidden_dim: int = 4096,
        momentum: float = 0.996,
        **regions: Unpack[RegionOptions],
    ) -> None:
        if not 0 <= momentum <= 1:
            raise UserError(f"the momentum must be between 0 and 1, not {momentum}")
        super().__init__(backbone, **regions)
        width = backbone.channels[backbone.deepest]
        self.projectors = nn.ModuleDict({name: NormedHead(width, hidden_dim, dim) for name in self.weights})
        self.predictors = nn.ModuleDict({name: NormedHead(dim, hidden_dim, dim) for name in self.weights})
        self.target_backbone, self.target_projectors = Momentum(backbone), Momentum(self.projectors)
        self.target_block = None if self.block is None else Momentum(self.block)
        self.momentum = momentum

    @staticmethod
    def views(augment: Augment | None = None) -> dict[str, Declaration]:
        return BYOL.views(augment)

    def before_step(self, batch: Batch) -> None:
        momentum = cosine(self.momentum, 1.0, batch.progress)
        self.target_backbone.update(self.backbone, momentum)
        self.target_projectors.update(self.projectors, momentum)
        if self.target_block is not None and self.block is not None:
            self.target_block.update(self.block, momentum)

    def forward(self, batch: Batch) -> Losses:
        both = self.both(batch)
        online = region_vectors(self.prior, batch, both, self.backbone, self.block)
        with torch.no_grad():
            block = None if self.target_block is None else self.target_block.network
            target = region_vectors(self.prior, batch, both, self.target_backbone.network, block)
        losses = {}
        for name, rows, present in self.existing(online):
            prediction = self.predictors[name](self.projectors[name](rows, present), present)
            with torch.no_grad():
                targets = self.target_projectors.network[name](target[name][0], present).roll(len(batch), 0)
            likeness = F.cosine_similarity(full_precision(prediction), full_precision(targets))
            losses[name] = 2 * masked_mean(
                2 - 2 * likeness, present & present.roll(len(batch), 0)
            )  # of both directions
        spread = torch.stack([deviation(*vectors) for vectors in target.values()]).amin()
        return self.summed(losses, online, {"feature_std": spread})
