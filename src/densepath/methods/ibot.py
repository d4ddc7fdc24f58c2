"""iBOT: DINO, and masked patches predict what the teacher says of the patches themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densepath.core.block_masking import block_masks, count_draws
from densepath.core.errors import UserError
from densepath.core.koleo import koleo
from densepath.core.masking import square_grid
from densepath.methods.base import Losses
from densepath.methods.dino import DINO
from densepath.methods.dino_options import DINOOptions
from densepath.methods.multi_crop import LOCAL, multi_crop
from densepath.methods.option_effects import Needed, With
from densepath.methods.region_vectors import Vectors
from densepath.nets.backbones import Backbone
from densepath.nets.backbones.transformer_parts import add_positions, embed_patches, encode, require_transformer
from densepath.views.augment import Augment
from densepath.views.declarations import Declaration
from densepath.views.view import Batch, View

_MASKED = 2**22  # stream of random numbers of masks, after that of stochastic depth


@dataclass(frozen=True, eq=False)
class Masked(View):
    """Views (N, 3, S, S) of which the patches in ``mask`` (N, n) are masked: ``rows`` (M,) of all N * n patches."""

    mask: Tensor
    rows: Tensor


class IBOT(DINO):
    """Image BERT pre-training with an online tokenizer.

    The student sees the global crops with some patches replaced by a mask token, the teacher sees all patches. With
    DINO's loss L_image of views, the masked patches M of a global crop v, and the distributions of the teacher p_v,i
    and of the student s_v,i of patch i of the *same* crop,

    L = L_image + patch_weight * mean over images and global crops v of mean over i in M of
                  -sum over prototypes of p_v,i log s_v,i   (Equations 2 and 3),

    where a crop without masked patches counts as 0. Both share one head, but each has a center, that of patches over
    all patches of the teacher; the statistics of patches are over the masked ones. A crop is masked with probability
    ``mask_probability``, its number of masked patches is uniform, and masks consist of blocks; the rest that fits no
    block is filled with single patches.

    ``centering="sinkhorn"``, ``koleo_weight=0.2``, ``shared_head=False`` and a backbone with register tokens
    (``vit_small_patch16_224(reg_tokens=4)``) are what DINOv2 adds. It sums KoLeo over the two global crops, here it is
    the mean; and it centers or balances only the masked patches of the teacher, here all of them.

    In the released code the mask token begins as zeros, and weights decay it; here it begins as a truncated normal of
    0.02, as in BEiT, and does not decay.

    Args:
        backbone: the student, a vision transformer.
        pool: a view's vector: the class token ("cls"), or the "mean" of its patches.
        patch_weight: weight of the loss of patches.
        mask_probability: probability that a crop is masked.
        mask_ratio: mean share of its patches that are then masked.
        mask_spread: largest difference from that; it is uniform.
        shared_head: whether views and patches share a head.
        koleo_weight: weight of the KoLeo regularizer on the student's vectors of global crops; image_loss contains it.
        **dino: as in :class:`DINO`.

    Source: Zhou et al., ICLR 2022, arXiv 2111.07832, and its released code; Oquab et al., DINOv2, TMLR 2024.
    """

    heads_of_positions = True
    needed_options: ClassVar[Needed] = {"shared_head": (With("patch_weight"),)}

    def __init__(
        self,
        backbone: Backbone,
        pool: Literal["cls", "mean"] = "cls",
        patch_weight: float = 1.0,
        mask_probability: float = 0.5,
        mask_ratio: float = 0.3,
        mask_spread: float = 0.2,
        shared_head: bool = True,
        koleo_weight: float = 0.0,
        **dino: Unpack[DINOOptions],
    ) -> None:
        model = require_transformer(backbone, "ibot")
        if not 0 < mask_probability <= 1:
            raise UserError(f"the probability of a mask is more than 0 and at most 1, not {mask_probability}")
        low, high = mask_ratio - mask_spread, mask_ratio + mask_spread
        if not 0 < low <= high < 1:
            raise UserError(
                f"masks hide from mask_ratio - mask_spread to their sum, between 0 and 1, not {low} to {high}"
            )
        super().__init__(backbone, pool=pool, **dino)
        self.add_heads({"patch": dino.get("prototypes", 65536)})
        if shared_head:
            del self.heads["patch"], self.teacher_heads.network["patch"]
        self.weights |= {"patch": patch_weight}
        self.mask_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(model.embed_dim), std=0.02))
        self.mask_probability, self.mask_range = mask_probability, (low, high)
        self.koleo_weight = koleo_weight

    @staticmethod
    def views(augment: Augment | None = None, crops: int = 8, size: float = LOCAL) -> dict[str, Declaration]:
        return multi_crop(augment, crops, size, scale=(0.25, 1.0))

    def no_weight_decay(self) -> set[str]:
        return {"mask_token"}

    def forward(self, batch: Batch) -> Losses:
        return super().forward(self.with_masks(batch))

    def with_masks(self, batch: Batch) -> Batch:
        """The batch with ``mask`` (2 B, n) of the patches of global crops, a function of image, crop and epoch.

        ``masked`` (M,) are their rows among all patches, and ``mask_weights`` (M, 1) those in the loss. The last row
        does not count: there is always one.
        """
        device, grid = batch["first"].pixels.device, self._grid(batch["first"].pixels.shape[2:])
        length = 2 + count_draws(grid**2)
        draws = batch.uniform(2 * length, first=_MASKED).view(-1, 2, length).transpose(0, 1).flatten(0, 1)
        low, high = self.mask_range
        count = ((low + (high - low) * draws[:, 1]) * grid**2).round().long() * (draws[:, 0] < self.mask_probability)
        mask = block_masks(draws[:, 2:], grid, count, smallest=max(1, (grid // 3) ** 2))
        masked = mask.flatten().nonzero().flatten()
        weights = 1 / (len(mask) * count[masked // grid**2]).float()
        parts = {"mask": mask, "masked": F.pad(masked, (0, 1)), "mask_weights": F.pad(weights, (0, 1)).unsqueeze(1)}
        moved = {name: part.to(device, non_blocking=True) for name, part in parts.items()}
        return replace(batch, extras={**batch.extras, **moved})

    def seen(self, batch: Batch, sizes: list[View]) -> list[View]:
        masks = (batch.extras["mask"], batch.extras["masked"])
        return [Masked(sizes[0].pixels, sizes[0].map, *masks), *sizes[1:]]

    def represent(self, batch: Batch, crops: View, teacher: bool = False) -> Vectors:
        model = (self.teacher.network if teacher else self.backbone).net.model
        patches = embed_patches(model, crops.pixels)
        if isinstance(crops, Masked):
            hidden = crops.mask.view(*patches.shape[:3], 1)
            patches = torch.where(hidden, self.mask_token.to(patches.dtype), patches)
        tokens = encode(model, add_positions(model, patches))
        own = tokens[:, model.num_prefix_tokens :]
        image = tokens[:, 0] if self.pool == "cls" else own.mean(1)
        patch = own.flatten(0, 1)
        if not teacher:
            patch = patch[crops.rows] if isinstance(crops, Masked) else patch[:0]
        return {"image": (image, None), "patch": (patch, None)}

    def distill(
        self, batch: Batch, name: str, taught: tuple[Tensor, Tensor | None], learned: list[tuple[Tensor, Tensor | None]]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        if name == "patch":
            masked, weights = batch.extras["masked"], batch.extras["mask_weights"]
            counted, rows = weights.squeeze(1) > 0, torch.arange(len(masked), device=masked.device).unsqueeze(1)
            return self.compare_rows(
                batch, name, taught, (learned[0][0], counted), rows, weights, used=(masked, counted)
            )
        loss, statistics = super().distill(batch, name, taught, learned)
        if self.koleo_weight:
            spread = torch.stack([koleo(view) for view in learned[0][0].chunk(2)]).mean()
            loss, statistics["koleo"] = loss + self.koleo_weight * spread, spread.detach()
        return loss, statistics

    def check(self, sizes: Mapping[str, tuple[int, ...]], batch_size: int, processes: int = 1) -> None:
        super().check(sizes, batch_size, processes)
        self._grid(sizes["first"])

    def check_batch(self, batch_size: int, processes: int = 1) -> None:
        super().check_batch(batch_size, processes)
        if self.koleo_weight and batch_size < 2:
            raise UserError("a batch of one image has no neighbors for KoLeo; use two or more")

    def _grid(self, size: Sequence[int]) -> int:
        return square_grid(size, self.backbone.patch_size)
