"""DiRL and Cellback on SimCLR: contrasts each vector of regions within a batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from densepath.core.errors import UserError
from densepath.core.losses import full_precision, nt_xent
from densepath.methods.base import Losses
from densepath.methods.cell_prior import CellPrior, GuidedByCells
from densepath.methods.region_vectors import make_block, region_vectors, region_weights
from densepath.methods.simclr import SimCLR
from densepath.nets.backbones import Backbone
from densepath.nets.heads import MLPHead
from densepath.views.augment import Augment
from densepath.views.declarations import Declaration
from densepath.views.view import Batch, View


class DiRLSimCLR(GuidedByCells):
    """The loss of :class:`~densepath.methods.dirl.DiRL` with NT-Xent in place of DINO's (Table 8).

    L = lambda1 (L_c + L_b) + lambda2 (L_cc + L_bb + L_cb + L_bc), each the loss of :class:`SimCLR` on the two views of
    those images of the batch of which both views have the region, with a head of its own. Heads are two layers without
    batch norms, as in DSMIL's SimCLR, which the paper uses; their initialization is that of :class:`MLPHead`, and views
    are those of :class:`SimCLR`.

    Args:
        backbone: the encoder; a vision transformer, unless ``interactions`` are off.
        prior, num_regions, region_weight: as in :class:`~densepath.methods.cellback.Cellback`.
        interactions: whether there is a disentangle block (DiRL), or none (Cellback).
        interaction_weight, shared_block: as in :class:`~densepath.methods.dirl.DiRL`.
        dim: dimension of the embeddings.
        hidden_dim: width of the hidden layers of the heads; by default the backbone's.
        temperature: temperature of the contrastive losses.

    Source: Kapse et al., "Attention De-sparsification Matters" (DiRL), Table 8; Li et al., DSMIL, CVPR 2021.
    """

    views_together = 2

    def __init__(
        self,
        backbone: Backbone,
        prior: Literal["cells", "files"] = "cells",
        num_regions: int = 2,
        region_weight: float = 0.5,
        interactions: bool = True,
        interaction_weight: float = 0.025,
        shared_block: bool = True,
        dim: int = 256,
        hidden_dim: int | None = None,
        temperature: float = 0.5,
    ) -> None:
        super().__init__()
        if not temperature > 0:
            raise UserError(f"the temperature must be positive, not {temperature}")
        self.backbone = backbone
        self.prior = CellPrior(prior, num_regions)
        self.block = make_block(backbone, shared_block) if interactions else None
        self.weights = region_weights(self.prior, region_weight, interaction_weight if interactions else None)
        width = backbone.channels[backbone.deepest]
        self.heads = nn.ModuleDict({name: MLPHead(width, hidden_dim or width, dim) for name in self.weights})
        self.temperature = temperature

    @staticmethod
    def views(augment: Augment | None = None) -> dict[str, Declaration]:
        return SimCLR.views(augment)

    def forward(self, batch: Batch) -> Losses:
        views = [batch["first"], batch["second"]]
        both = View(torch.cat([view.pixels for view in views]), torch.cat([view.map for view in views]))
        vectors = region_vectors(self.prior, batch, both, self.backbone, self.block)
        total = torch.zeros((), device=both.pixels.device)
        terms, statistics = {}, {}
        for name, weight in self.weights.items():
            rows, present = vectors[name]
            assert present is not None
            z = F.normalize(full_precision(self.heads[name](rows)), dim=1)
            (own, other), (first, second) = present.chunk(2), z.chunk(2)
            loss = nt_xent(first, second, self.temperature, own & other)
            total = total + weight * loss
            terms[f"{name}_loss"] = loss.detach()
            if name in self.prior.names():
                statistics[f"{name}_views"] = present.float().mean()
        return Losses(total, terms, statistics)

    def check(self, sizes: Mapping[str, tuple[int, ...]], batch_size: int, processes: int = 1) -> None:
        super().check(sizes, batch_size, processes)
        if batch_size < 2:
            raise UserError("a batch of one image has no negatives; use two or more")
