"""DiRL: distills cells, background, and how they interact within and between each other."""

from __future__ import annotations

from typing import Literal, Unpack

from torch import Tensor

from densepath.core.momentum import Momentum
from densepath.methods.cellback import Cellback, pooled
from densepath.methods.dino import DINOOptions, Vectors
from densepath.nets.backbones import Backbone
from densepath.nets.backbones.transformer_parts import add_positions, embed_patches, require_transformer, run_blocks
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
        prior, num_regions, region_weight: as in :class:`Cellback`.
        interaction_weight: weight lambda2 of each loss of the disentangle block.
        interaction_prototypes: number of prototypes of each of its heads.
        shared_block: whether its two passes share their weights.
        **dino: as in :class:`Cellback`.

    Source: Kapse et al., "Attention De-sparsification Matters" (DiRL), section 3; no code was released.
    """

    def __init__(
        self,
        backbone: Backbone,
        prior: Literal["cells", "files"] = "cells",
        num_regions: int = 2,
        region_weight: float = 0.5,
        interaction_weight: float = 0.025,
        interaction_prototypes: int = 4096,
        shared_block: bool = True,
        **dino: Unpack[DINOOptions],
    ) -> None:
        model = require_transformer(backbone, "dirl")
        super().__init__(backbone, prior, num_regions, region_weight, **dino)
        self.block = Disentangle(model.num_features, model.blocks[-1].attn.num_heads, shared_block)
        self.teacher_block = Momentum(self.block)
        names = self.prior.names()
        self.interactions = [tuple(f"{name}_{how}" for name in names) for how in ("within", "between")]
        if num_regions == 2:
            self.interactions = [("cell_cell", "back_back"), ("cell_back", "back_cell")]
        within, between = self.interactions
        weights = dict.fromkeys((*within, *between), interaction_weight)
        self.add_heads(dict.fromkeys(weights, interaction_prototypes))
        self.weights |= weights

    def before_step(self, batch: Batch) -> None:
        super().before_step(batch)
        self.teacher_block.update(self.block, self.teacher_momentum(batch))

    def represent(self, batch: Batch, crops: View, teacher: bool = False) -> Vectors:
        backbone: Backbone = self.teacher.network if teacher else self.backbone
        block: Disentangle = self.teacher_block.network if teacher else self.block
        model = backbone.net.model
        patches = embed_patches(model, crops.pixels)
        grid = (patches.shape[1], patches.shape[2])
        tokens = run_blocks(model, add_positions(model, patches))
        labels = self.prior(batch, crops, grid)
        features = model.norm(tokens)[:, model.num_prefix_tokens :]
        both = block(tokens[:, model.num_prefix_tokens :], labels.flatten(1))
        vectors = pooled(labels, _map(features, grid), self.prior.names())
        for names, interaction in zip(self.interactions, both, strict=True):
            vectors |= pooled(labels, _map(interaction, grid), names)
        return vectors


def _map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Tokens (N, n, C) as a map (N, C, h, w), a view of them."""
    return tokens.transpose(1, 2).unflatten(2, grid)
