"""Cellback: DINO on the mean of the cell tokens and on that of the background tokens of each view."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, Unpack

from torch import Tensor

from densepath.core.regions import Regions
from densepath.methods.cell_prior import CellPrior
from densepath.methods.dino import DINO, DINOOptions, Vectors
from densepath.methods.needs import Need
from densepath.nets.backbones import Backbone
from densepath.sources.pixel_source import PixelSource
from densepath.views.view import Batch, View

_SELDOM = 0.05  # with fewer pairs of views that both have a region, it teaches little


class Cellback(DINO):
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
        **dino: Unpack[DINOOptions],
    ) -> None:
        super().__init__(backbone, **dino)
        self.prior = CellPrior(prior, num_regions)
        self.add_heads(dict.fromkeys(self.prior.names(), dino.get("prototypes", 65536)))
        self.weights = dict.fromkeys(self.prior.names(), region_weight)

    def needs(self) -> Mapping[str, Need]:
        return self.prior.needs()

    def prepare(self, images: PixelSource, given: Mapping[str, Any] = MappingProxyType({})) -> str | None:
        self.extras = {name: given[name] for name in self.needs()}
        return self.prior.check(given)

    def represent(self, batch: Batch, crops: View, teacher: bool = False) -> Vectors:
        backbone: Backbone = self.teacher.network if teacher else self.backbone
        features = backbone(crops.pixels)[backbone.deepest]
        return pooled(self.prior(batch, crops, tuple(features.shape[2:])), features, self.prior.names())

    def distill(
        self, batch: Batch, name: str, taught: tuple[Tensor, Tensor | None], learned: list[tuple[Tensor, Tensor | None]]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        loss, statistics = super().distill(batch, name, taught, learned)
        if name in self.prior.names() and taught[1] is not None:
            statistics["views"] = taught[1].float().mean()
        return loss, statistics

    def warnings(self, row: Mapping[str, float], last: bool) -> list[str]:
        seldom = [name for name in self.prior.names() if row.get(f"{name}_views", 1.0) < _SELDOM]
        lines = [
            f"fewer than {_SELDOM:.0%} of the global crops have a position of the region {name!r}: it teaches little; "
            "check the cells, or choose another --method.num_regions"
            for name in seldom
        ]
        return [*super().warnings(row, last), *lines]


def pooled(labels: Tensor, features: Tensor, names: tuple[str, ...]) -> Vectors:
    """The mean of the features (N, C, *grid) over each region of a label map (N, *grid), by the name of the region."""
    regions = Regions.of_labels(labels, len(names))
    vectors, present = regions.pool(features), regions.present()
    return {name: (vectors[:, number], present[:, number]) for number, name in enumerate(names)}
