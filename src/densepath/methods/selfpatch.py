"""SelfPatch: DINO on whole views, and each patch predicts what its most similar neighbors are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Unpack

import torch
from torch import Tensor

from densepath.core.errors import UserError
from densepath.core.momentum import Momentum
from densepath.methods.dino import DINO
from densepath.methods.dino_options import DINOOptions
from densepath.methods.multi_crop import LOCAL, multi_crop
from densepath.methods.option_effects import Needed, With
from densepath.methods.region_vectors import Vectors
from densepath.nets.aggregate import Aggregate, similar_neighbors
from densepath.nets.backbones import Backbone
from densepath.nets.backbones.transformer_parts import (
    add_positions,
    choose_attention,
    embed_patches,
    require_transformer,
    run_blocks,
)
from densepath.views.augment import Augment
from densepath.views.declarations import Declaration
from densepath.views.view import Batch, View


class SelfPatch(DINO):
    """Self-distillation of views and of patches.

    A view's vector is an :class:`Aggregate` of its patch tokens. The teacher also aggregates, for each patch i, those
    k of its 8 neighbors that are the most similar to it. With DINO's loss L_image of views, the teacher's distribution
    p_v,i of that aggregate, and the student's s_v,i of the patch token itself, in the *same* view v,

    L = L_image + patch_weight * mean over all views, images and patches of  -sum over prototypes of p_v,i log s_v,i.

    As in the released code, the teacher sees all views: those that are local teach patches and enter the center of
    views, too. There a final norm belongs to the aggregation; here it is the backbone's, so the exported network has
    it.

    Args:
        backbone: the student, a vision transformer. Its class token, if it has one, does not enter any vector.
        patch_weight: weight of the loss of patches.
        patch_prototypes: number of prototypes of their head.
        neighbors: number k of neighbors that an aggregate has, 1 to 8.
        **dino: as in :class:`DINO`.

    Source: Yun et al., CVPR 2022, arXiv 2206.07990, and its released code.
    """

    heads_of_positions = True
    needed_options: ClassVar[Needed] = {
        "patch_prototypes": (With("patch_weight"),),
        "neighbors": (With("patch_weight"),),
    }

    def __init__(
        self,
        backbone: Backbone,
        patch_weight: float = 0.1,
        patch_prototypes: int = 4096,
        neighbors: int = 4,
        **dino: Unpack[DINOOptions],
    ) -> None:
        model = require_transformer(backbone, "selfpatch")
        if not 1 <= neighbors <= 8:
            raise UserError(f"a patch has 8 neighbors; give --method.neighbors from 1 to 8, not {neighbors}")
        super().__init__(backbone, **dino)
        self.aggregate = Aggregate(model.num_features, model.blocks[-1].attn.num_heads)
        self.teacher_aggregate = Momentum(self.aggregate)
        self.neighbors = neighbors
        self.add_heads({"patch": patch_prototypes})
        self.weights |= {"patch": patch_weight}

    @staticmethod
    def views(augment: Augment | None = None, crops: int = 8, size: float = LOCAL) -> dict[str, Declaration]:
        return multi_crop(augment, crops, size, scale=(0.25, 1.0))

    def before_step(self, batch: Batch) -> None:
        super().before_step(batch)
        self.teacher_aggregate.update(self.aggregate, self.teacher_momentum(batch))

    def teach(self, batch: Batch, sizes: list[View]) -> Vectors:
        found = [self.represent(batch, crops, teacher=True) for crops in sizes]
        image = torch.cat([vectors["image"][0] for vectors in found])
        patch = torch.cat([vectors["patch"][0].flatten(0, 1) for vectors in found])
        return {"image": (image, None), "patch": (patch, None)}

    def represent(self, batch: Batch, crops: View, teacher: bool = False) -> Vectors:
        backbone: Backbone = self.teacher.network if teacher else self.backbone
        aggregate: Aggregate = self.teacher_aggregate.network if teacher else self.aggregate
        model = backbone.net.model
        choose_attention(aggregate.blocks, crops.pixels.device)
        patches = embed_patches(model, crops.pixels)
        tokens = run_blocks(model, add_positions(model, patches))[:, model.num_prefix_tokens :]
        image = model.norm(aggregate(tokens))
        if teacher:
            near = similar_neighbors(tokens, (patches.shape[1], patches.shape[2]), self.neighbors)
            tokens = aggregate(near.flatten(0, 1)).view(tokens.shape)
        return {"image": (image, None), "patch": (model.norm(tokens), None)}

    def pairs(self, batch: Batch, rows: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Those whose teacher saw a global crop."""
        kept = weights[:, :2]
        return rows[:, :2], kept * (rows.shape[1] / 2)  # each teacher has equally many pairs

    def distill(
        self, batch: Batch, name: str, taught: tuple[Tensor, Tensor | None], learned: list[tuple[Tensor, Tensor | None]]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        if name != "patch":
            return super().distill(batch, name, taught, learned)
        tokens = [x for x, _ in learned]
        crops = sum(map(len, tokens))
        weights = torch.cat([x.new_full((len(x) * x.shape[1], 1), 1 / (crops * x.shape[1])) for x in tokens])
        rows = torch.arange(len(weights), device=weights.device).unsqueeze(1)
        students = torch.cat([x.flatten(0, 1) for x in tokens])
        return self.compare_rows(batch, name, taught, (students, None), rows, weights.float())

    def check(self, sizes: Mapping[str, tuple[int, ...]], batch_size: int, processes: int = 1) -> None:
        super().check(sizes, batch_size, processes)
        for name in ("first", *("local",) * (not self.unused_views)):
            if min(sizes[name]) < 3 * self.backbone.patch_size:
                raise UserError(
                    f"crops of {min(sizes[name])} px have less than 3 patches along a side, so that patches lack "
                    "neighbors; use a larger --view_size or --method.local_size"
                )
