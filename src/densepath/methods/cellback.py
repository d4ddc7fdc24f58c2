"""Cellback: DINO on the mean of the cell tokens and on that of the background tokens of each view."""

from __future__ import annotations

from typing import Literal, Unpack

from torch import Tensor

from densepath.methods.cell_prior import CellPrior, GuidedByCells
from densepath.methods.dino import DINO
from densepath.methods.dino_options import DINOOptions
from densepath.methods.region_vectors import Vectors, region_vectors, region_weights
from densepath.nets.backbones import Backbone
from densepath.views.view import Batch, View


class Cellback(GuidedByCells, DINO):
    """Distillation of two region vectors.

    With the positions that hold cells, P, and the last features T of a view,

    f_c = (sum of P_i T_i) / (sum of P_i)   and   f_b = (sum of (1 - P_i) T_i) / (sum of (1 - P_i))   (Equation 3),

    L = lambda1 (L_c + L_b): each is DINO's loss with a head and a center of its own. The paper does not say what an
    empty region does. Here L_c and L_b are means over those pairs of views of an image, of all processes, that both
    have the region, and centers are means over the vectors that exist. Pooling is after the final norm.

    The regions may be more than two: the classes of cells, and the background. Any backbone will do.

    Args:
        backbone: the student.
        prior: where regions come from: points of "cells" (``--cells``), or label maps in "files" (``--regions``).
        num_regions: number of regions; with more than two, the classes of cells and the background.
        region_weight: weight lambda1 of each region's loss.
        shuffled_cells: whether each image gets the cells of another image, always the same one: a control.
        **dino: as in :class:`DINO`; ``prototypes`` are those of each head.

    Source: Kapse et al., "Attention De-sparsification Matters" (DiRL), section 3.3; no code was released.
    """

    own_heads = ()

    def __init__(
        self,
        backbone: Backbone,
        prior: Literal["cells", "files"] = "cells",
        num_regions: int = 2,
        region_weight: float = 0.5,
        shuffled_cells: bool = False,
        **dino: Unpack[DINOOptions],
    ) -> None:
        super().__init__(backbone, **dino)
        self.prior = CellPrior(prior, num_regions, shuffled_cells)
        self.add_heads(dict.fromkeys(self.prior.names(), dino.get("prototypes", 65536)))
        self.weights = region_weights(self.prior, region_weight, None)

    def represent(self, batch: Batch, crops: View, teacher: bool = False) -> Vectors:
        backbone: Backbone = self.teacher.network if teacher else self.backbone
        return region_vectors(self.prior, batch, crops, backbone)

    def distill(
        self, batch: Batch, name: str, taught: tuple[Tensor, Tensor | None], learned: list[tuple[Tensor, Tensor | None]]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        loss, statistics = super().distill(batch, name, taught, learned)
        if name in self.prior.names() and taught[1] is not None:
            statistics["views"] = taught[1].float().mean()
        return loss, statistics
