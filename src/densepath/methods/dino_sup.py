"""DINO with L_sup: the student also predicts the number of cells in each of its tokens."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densepath.annotations.cells.cell_points import CellPoints
from densepath.core.losses import full_precision
from densepath.core.regions import global_pool, point_counts
from densepath.methods.base import Losses
from densepath.methods.cell_prior import cells_in
from densepath.methods.dino import DINO
from densepath.methods.dino_options import DINOOptions
from densepath.methods.needs import Need
from densepath.methods.region_vectors import Vectors
from densepath.nets.backbones import Backbone
from densepath.sources.pixel_source import PixelSource
from densepath.views.view import Batch, View


class DINOSup(DINO):
    """Self-distillation, and supervision by cells: the multi-task comparison of DiRL.

    L = L_DINO + w L_sup, with L_sup the mean over all tokens i of all crops of |linear(T_i) - n_i|^2, where n_i is the
    number of cells that the crop shows in the patch of token i. Tokens are those after the final norm of the student.
    The paper states neither the loss of the counts nor w.

    Args:
        backbone: the student; any will do.
        count_weight: weight w of the loss of the counts.
        **dino: as in :class:`DINO`.

    Source: Kapse et al., "Attention De-sparsification Matters" (DiRL), the variant L_sup.
    """

    def __init__(self, backbone: Backbone, count_weight: float = 1.0, **dino: Unpack[DINOOptions]) -> None:
        super().__init__(backbone, **dino)
        self.count_weight = count_weight
        self.count_head = nn.Linear(backbone.channels[backbone.deepest], 1)
        nn.init.trunc_normal_(self.count_head.weight, std=0.02)
        nn.init.zeros_(self.count_head.bias)

    def needs(self) -> Mapping[str, Need]:
        return {"cells": Need("cells")}

    def prepare(self, images: PixelSource, given: Mapping[str, Any] = MappingProxyType({})) -> str | None:
        cells: CellPoints = given["cells"]
        self.extras = {"cells": cells}
        return cells.describe()

    def represent(self, batch: Batch, crops: View, teacher: bool = False) -> Vectors:
        backbone: Backbone = self.teacher.network if teacher else self.backbone
        features = backbone(crops.pixels)[backbone.deepest]
        return {"image": (global_pool(features), None), "tokens": (features, None)}

    def compare(self, batch: Batch, sizes: list[View], taught: Vectors, learned: list[Vectors]) -> Losses:
        losses = super().compare(batch, sizes, taught, learned)
        errors = []
        for crops, vectors in zip(sizes, learned, strict=True):
            tokens = vectors["tokens"][0]  # (N, C, *grid)
            found = full_precision(self.count_head(tokens.movedim(1, -1))).squeeze(-1)
            errors.append(
                F.mse_loss(found, self.counts(batch, crops, found).to(found.dtype), reduction="none").flatten()
            )
        counted = torch.cat(errors).mean()
        total = losses.total + self.count_weight * counted
        return Losses(total, {**losses.terms, "count_loss": counted.detach()}, losses.statistics)

    def counts(self, batch: Batch, crops: View, like: Tensor) -> Tensor:
        """The number of cells in each token of crops, (N, *grid) like the given tensor."""
        return point_counts(cells_in(batch, crops)[0], like.shape[1:])
