"""DiRL: distills cells, background, and how they interact within and between each other."""

from __future__ import annotations

from typing import ClassVar, Literal, Unpack

from densepath.core.momentum import Momentum
from densepath.methods.cellback import Cellback
from densepath.methods.dino_options import DINOOptions
from densepath.methods.option_effects import Needed, With
from densepath.methods.region_vectors import Vectors, make_block, region_vectors, region_weights
from densepath.nets.backbones import Backbone
from densepath.nets.backbones.transformer_parts import require_transformer
from densepath.nets.disentangle import Disentangle
from densepath.views.view import Batch, View


class DiRL(Cellback):
    """Diversity-inducing representation learning.

    Cellback's f_c and f_b, and four vectors of a disentangle block on the last tokens T (:class:`Disentangle`), pooled
    like them: f_cc and f_bb of T_self, in which regions see themselves, f_cb and f_bc of T_cross, in which each sees
    the other (Equation 8). With DINO's loss of each vector, all with heads and centers of their own,

    L = lambda1 (L_c + L_b) + lambda2 (L_cc + L_bb + L_cb + L_bc)   (Equation 9).

    lambda2 is printed as "0.1 4", taken as 0.1 / 4. The block is in the student and in the teacher; only the teacher's
    encoder is exported. The paper does not say where norms are: f_c and f_b are pooled after the final norm of the
    encoder, the block gets the tokens before that, and has a final norm of its own. With more than two regions,
    ``NAME_within`` and ``NAME_between`` are the vectors of each: the latter sees all other regions.

    Args:
        backbone: the student, a vision transformer. Its class token, if it has one, takes no part in the block.
        prior, num_regions, region_weight, shuffled_cells: as in :class:`Cellback`.
        interaction_weight: weight lambda2 of each loss of the disentangle block.
        interaction_prototypes: number of prototypes of each of its heads.
        shared_block: whether its two passes share their weights.
        **dino: as in :class:`Cellback`.

    Source: Kapse et al., "Attention De-sparsification Matters" (DiRL), section 3; no code was released.
    """

    needed_options: ClassVar[Needed] = {
        "interaction_prototypes": (With("interaction_weight"),),
        "shared_block": (With("interaction_weight"),),
    }

    def __init__(
        self,
        backbone: Backbone,
        prior: Literal["cells", "files"] = "cells",
        num_regions: int = 2,
        region_weight: float = 0.5,
        interaction_weight: float = 0.025,
        interaction_prototypes: int = 4096,
        shared_block: bool = True,
        shuffled_cells: bool = False,
        **dino: Unpack[DINOOptions],
    ) -> None:
        require_transformer(backbone, "dirl")
        super().__init__(backbone, prior, num_regions, region_weight, shuffled_cells, **dino)
        self.block = make_block(backbone, shared_block)
        self.teacher_block = Momentum(self.block)
        self.weights = region_weights(self.prior, region_weight, interaction_weight)
        self.add_heads({name: interaction_prototypes for name in self.weights if name not in self.heads})

    def before_step(self, batch: Batch) -> None:
        super().before_step(batch)
        self.teacher_block.update(self.block, self.teacher_momentum(batch))

    def represent(self, batch: Batch, crops: View, teacher: bool = False) -> Vectors:
        backbone: Backbone = self.teacher.network if teacher else self.backbone
        block: Disentangle = self.teacher_block.network if teacher else self.block
        return region_vectors(self.prior, batch, crops, backbone, block)
