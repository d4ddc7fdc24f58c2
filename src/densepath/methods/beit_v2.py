"""BEiT-v2: predicts the tokenizer's codes of masked patches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densepath.core.block_masking import block_masks, count_draws
from densepath.core.errors import UserError
from densepath.core.losses import full_precision
from densepath.core.masking import count_visible, square_grid
from densepath.methods.base import Losses
from densepath.methods.frozen_target import FrozenTarget
from densepath.methods.option_effects import Needed, With
from densepath.nets.backbones import Backbone
from densepath.nets.backbones.transformer_parts import (
    add_positions,
    embed_patches,
    narrows,
    pick,
    require_transformer,
    run_blocks,
)
from densepath.nets.new_blocks import new_blocks
from densepath.nets.tokenizers import Tokenizer
from densepath.views.augment import Augment
from densepath.views.declarations import Declaration
from densepath.views.view import Batch


class BEiTv2(FrozenTarget[Tokenizer]):
    """Masked image modelling on codes.

    With z_i the tokenizer's code of patch i of a view, M the masked patches, whose embeddings are replaced by a mask
    token, and h^L the tokens of the last layer,

    L = -mean over M of log p(z_i | h_i^L) - mean over M of log p(z_i | h'_i),   p = softmax(W h + b),

    where h' forces the class token to represent the image: it comes from the early head, two blocks on the class token
    of the last layer and the patch tokens of an earlier one. Both terms share the final norm, W and b. Masks consist of
    blocks.

    Differences from the paper: the backbone is an unchanged timm network, with its own initialization and learned
    position embeddings. The paper's has a relative position bias instead, shared by its layers, which no plain
    transformer of timm has, and layer scales, which some have: see ``layer_scale``. timm's own BEiT networks
    (``beitv2_base_patch16_224``) are made for fine-tuning, with a bias in each layer, without a norm of the patch
    tokens and for images of one size, and none is small: they are not supported as backbones. The blocks of the early
    head are like those of the backbone, with new weights; the released code also scales these down with depth. As in
    the released code, the tokenizer sees the same crop as the network, in the same colors.

    Args:
        backbone: a vision transformer, with patches of the tokenizer's size.
        mask_ratio: the share of patches that are masked.
        smallest_block: number of patches of the smallest block of a mask, unless fewer are left to mask.
        early_layer: the layer whose patch tokens the early head uses; default: at three quarters of the depth, 9 of 12.
        head_layers: number of blocks of the early head; 0 for no early head and no second term.
        layer_scale: initial layer scales of the backbone and the early head, 0.1 in the paper; default: those of timm,
            or of the loaded weights.

    Source: Peng et al., arXiv 2208.06366, and its released code; masks as BEiT (ICLR 2022).
    """

    needed_options: ClassVar[Needed] = {"early_layer": (With("head_layers"),)}

    def __init__(
        self,
        backbone: Backbone,
        mask_ratio: float = 75 / 196,
        smallest_block: int = 16,
        early_layer: int | None = None,
        head_layers: int = 2,
        layer_scale: float | None = None,
    ) -> None:
        super().__init__("tokenizer")
        model = require_transformer(backbone, "beit_v2")
        depth = len(model.blocks)
        early_layer = depth * 3 // 4 if early_layer is None else early_layer
        _check_layers(backbone, depth, early_layer, head_layers, smallest_block)
        self.backbone = backbone
        self.mask_ratio = mask_ratio
        self.smallest_block = smallest_block
        self.early_layer = early_layer
        self.mask_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(model.embed_dim), std=0.02))
        self.early_head = new_blocks(model, head_layers)
        if layer_scale is not None:
            _set_layer_scale(backbone, [*model.blocks, *self.early_head], layer_scale)

    @staticmethod
    def views(augment: Augment | None = None) -> dict[str, Declaration]:
        """Crops, flips and color jitter without hue."""
        mild = Augment(jitter=1.0, hue=0.0, grayscale=0.0, blur=0.0, interpolation="bicubic")
        return {"image": (augment or mild).random_view()}

    def no_weight_decay(self) -> set[str]:
        return {"mask_token"}

    def set_target(self, target: Tokenizer) -> None:
        own, theirs = self.backbone.patch_size, target.backbone.patch_size
        if own != theirs:
            raise UserError(
                f"the tokenizer has patches of {theirs} px, but {self.backbone.name} of {own} px; "
                "choose networks with the same patch size"
            )
        super().set_target(target)

    def make_head(self, width: int) -> nn.Module:
        head = nn.Linear(self.backbone.channels[self.backbone.deepest], width)
        nn.init.trunc_normal_(head.weight, std=0.02)
        nn.init.zeros_(head.bias)
        return head

    def forward(self, batch: Batch) -> Losses:
        pixels = batch["image"].pixels
        mask = self.draw_mask(batch, pixels.shape[2:])  # on the CPU
        chosen = mask.nonzero()[:, 1].view(len(mask), -1).to(pixels.device, non_blocking=True)  # (B, M)
        codes = self.target(pixels).gather(1, chosen)
        outputs = self.encode(pixels, mask.to(pixels.device, non_blocking=True))
        logits = torch.stack([full_precision(self.classify(tokens, chosen)) for tokens in outputs])  # (1 or 2, B, M, K)
        losses = [F.cross_entropy(own.flatten(0, 1), codes.flatten()) for own in logits]
        terms = dict(zip(("code_loss", "early_code_loss"), (loss.detach() for loss in losses), strict=False))
        accuracy = (logits[0].argmax(-1) == codes).float().mean()
        return Losses(torch.stack(losses).sum(), terms, {"accuracy": accuracy})

    def draw_mask(self, batch: Batch, size: Sequence[int]) -> Tensor:
        """(B, N) bool on the CPU, true where a patch is masked: a function of image and epoch."""
        grid = square_grid(size, self.backbone.patch_size)
        count = grid**2 - count_visible(grid**2, self.mask_ratio)
        return block_masks(batch.uniform(count_draws(grid**2)), grid, count, self.smallest_block)

    def encode(self, pixels: Tensor, mask: Tensor) -> list[Tensor]:
        """Tokens (B, prefix + N, C) after the last layer and, if there is one, after the early head.

        Args:
            pixels: (B, 3, S, S).
            mask: (B, N) bool, on the device of the pixels.
        """
        model: Any = self.backbone.net.model
        patches = embed_patches(model, pixels)
        hidden = mask.view(*patches.shape[:3], 1)
        tokens = add_positions(model, torch.where(hidden, self.mask_token.to(patches.dtype), patches))
        early = run_blocks(model, tokens, 0, self.early_layer)
        last = run_blocks(model, early, self.early_layer)
        if not len(self.early_head):
            return [last]
        prefix = model.num_prefix_tokens
        return [last, self.early_head(torch.cat((last[:, :prefix], early[:, prefix:]), dim=1))]

    def classify(self, tokens: Tensor, chosen: Tensor) -> Tensor:
        """Logits (B, M, K) of the chosen patches (B, M) among tokens (B, prefix + N, C)."""
        model: Any = self.backbone.net.model
        logits: Tensor = self.head(model.norm(pick(tokens[:, model.num_prefix_tokens :], chosen)))
        return logits

    def check(self, sizes: Mapping[str, tuple[int, ...]], batch_size: int, processes: int = 1) -> None:
        super().check(sizes, batch_size, processes)
        count_visible(square_grid(sizes["image"], self.backbone.patch_size) ** 2, self.mask_ratio)


def _check_layers(backbone: Backbone, depth: int, early_layer: int, head_layers: int, smallest_block: int) -> None:
    model: Any = backbone.net.model
    if smallest_block < 1:
        raise UserError(f"the blocks of a mask have at least one patch, not {smallest_block}")
    if not 0 <= head_layers <= depth:
        raise UserError(f"the early head has 0 to {depth} blocks on {backbone.name}, not {head_layers}")
    if head_layers and not 0 < early_layer < depth:
        raise UserError(f"early_layer must be from 1 to {depth - 1} on {backbone.name}, not {early_layer}")
    if head_layers and narrows(model.blocks[early_layer:]):
        raise UserError(
            f"the width of {backbone.name} is halved after early_layer {early_layer}; set --method.early_layer to a "
            "later one, or --method.head_layers 0"
        )
    if head_layers and model.cls_token is None:
        raise UserError(
            f"{backbone.name} has no class token for the early head; choose another backbone, or --method.head_layers 0"
        )


def _set_layer_scale(backbone: Backbone, blocks: list[nn.Module], value: float) -> None:
    scales = [p for block in blocks for name, p in block.named_parameters() if name.rpartition(".")[2] == "gamma"]
    if not scales:
        raise UserError(
            f"{backbone.name} has no layer scales; leave out --method.layer_scale, or choose a backbone that has them, "
            "e.g. deit3_small_patch16_224"
        )
    with torch.no_grad():
        for scale in scales:
            scale.fill_(value)
