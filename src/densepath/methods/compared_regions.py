"""What DiRL and Cellback on SimCLR and BYOL have in common: the regions of two views, and the sum of their losses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal, TypedDict

import torch
from torch import Tensor

from densepath.methods.base import Losses
from densepath.methods.cell_prior import CellPrior, GuidedByCells
from densepath.methods.option_effects import Needed, With
from densepath.methods.region_vectors import Vectors, make_block, region_weights
from densepath.nets.backbones import Backbone
from densepath.views.view import Batch, View


class RegionOptions(TypedDict, total=False):
    """The parameters of :class:`ComparedRegions` that the methods which extend it have, too."""

    prior: Literal["cells", "files"]
    num_regions: int
    region_weight: float
    interactions: bool
    interaction_weight: float
    shared_block: bool


class ComparedRegions(GuidedByCells):
    """L = lambda1 (L_c + L_b) + lambda2 (L_cc + L_bb + L_cb + L_bc) for two views that pass together.

    Args:
        backbone: the encoder; a vision transformer, unless ``interactions`` are off.
        prior, num_regions, region_weight: as in :class:`~densepath.methods.cellback.Cellback`.
        interactions: whether there is a disentangle block (DiRL), or none (Cellback).
        interaction_weight, shared_block: as in :class:`~densepath.methods.dirl.DiRL`.
    """

    views_together = 2
    needed_options: ClassVar[Needed] = {
        "interaction_weight": (With("interactions"),),
        "shared_block": (With("interaction_weight"),),
    }

    def __init__(
        self,
        backbone: Backbone,
        prior: Literal["cells", "files"] = "cells",
        num_regions: int = 2,
        region_weight: float = 0.5,
        interactions: bool = True,
        interaction_weight: float = 0.025,
        shared_block: bool = True,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.prior = CellPrior(prior, num_regions)
        self.block = make_block(backbone, shared_block) if interactions else None
        self.weights = region_weights(self.prior, region_weight, interaction_weight if interactions else None)

    @staticmethod
    def both(batch: Batch) -> View:
        """The two views of all images, one after the other."""
        views = batch["first"], batch["second"]
        return View(torch.cat([view.pixels for view in views]), torch.cat([view.map for view in views]))

    def existing(self, vectors: Vectors) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Each vector of both views that has a weight: its name, (2 * B, C), and (2 * B,) bool, the rows that exist."""
        for name in self.weights:
            rows, present = vectors[name]
            assert present is not None
            yield name, rows, present

    def summed(self, losses: dict[str, Tensor], vectors: Vectors, statistics: dict[str, Tensor]) -> Losses:
        """The weighted sum of the losses by name, with the shares of the views that show each region."""
        total = torch.zeros((), device=next(iter(losses.values())).device)
        for name, loss in losses.items():
            total = total + self.weights[name] * loss
        shares = {f"{n}_views": p.float().mean() for n, _, p in self.existing(vectors) if n in self.prior.names()}
        return Losses(total, {f"{name}_loss": loss.detach() for name, loss in losses.items()}, statistics | shares)
