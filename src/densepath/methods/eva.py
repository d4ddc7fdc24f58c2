"""EVA in the style of MAE: predicts a teacher's features of masked patches."""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from densepath.core.losses import full_precision
from densepath.core.masking import count_visible, random_visible, square_grid
from densepath.methods.base import Losses
from densepath.methods.frozen_target import FrozenTarget
from densepath.nets.backbones import Backbone
from densepath.nets.backbones.transformer_parts import (
    encode_visible,
    fix_positions,
    initialize_transformer,
    pick,
    require_transformer,
)
from densepath.nets.decoders.tokens import TokenDecoder
from densepath.nets.teachers import Teacher
from densepath.views.augment import Augment
from densepath.views.declarations import Declaration
from densepath.views.view import Batch


class EVA(FrozenTarget[Teacher]):
    """A teacher's features of masked patches are predicted from the visible ones.

    As MAE, but the target is t_p, the feature of patch p by a frozen teacher that sees the whole view: with the visible
    patches x_V, the masked ones M, the encoder f and the decoder d,

    L = mean over p in M of  2 - 2 cos(d(f(x_V))_p, t_p).

    This is the form of EVA that Conv-MIM compares with, from mmselfsup. EVA itself has no decoder: its encoder sees
    mask tokens, in blocks that cover 40% of the patches, and the loss is -cos. The teacher is CLIP's ViT-B/16 with its
    projection to 512 dimensions (EVA has a larger one), here ``hf-hub:openai/clip-vit-base-patch16``. For tissue use a
    teacher that was trained on tissue. Initial weights (:meth:`initialize`), and tensors without weight decay in the
    recipe, are mmselfsup's: biases, norms, class and mask tokens.

    Args:
        backbone: the encoder, a vision transformer.
        mask_ratio: share of masked patches.
        decoder_depth: number of blocks of the decoder.
        decoder_dim: width of the decoder.
        decoder_heads: attention heads of the decoder.
        fixed_positions: whether fixed sines and cosines replace the backbone's position embeddings. Otherwise these are
            trained further: for weights that have embeddings of their own.

    Source: Fang et al., CVPR 2023, arXiv 2211.07636, as mmselfsup's configuration ``eva-mae-style`` and Conv-MIM (WACV
    2024) have it; MAE (CVPR 2022).
    """

    def __init__(
        self,
        backbone: Backbone,
        mask_ratio: float = 0.75,
        decoder_depth: int = 8,
        decoder_dim: int = 512,
        decoder_heads: int = 16,
        fixed_positions: bool = True,
    ) -> None:
        super().__init__("teacher")
        model = require_transformer(backbone, "eva")
        if fixed_positions:
            fix_positions(model)
        self.backbone = backbone
        self.mask_ratio = mask_ratio
        self._decoder = (model.num_features, decoder_dim, decoder_depth, decoder_heads)
        self.make_head(1)  # raises an error now if the numbers are not consistent

    @staticmethod
    def views(augment: Augment | None = None) -> dict[str, Declaration]:
        """Crops and flips; the colors stay."""
        plain = Augment(jitter=0.0, grayscale=0.0, blur=0.0, interpolation="bicubic")
        return {"image": (augment or plain).random_view()}

    def make_head(self, width: int) -> nn.Module:
        return TokenDecoder(*self._decoder, width)

    def forward(self, batch: Batch) -> Losses:
        pixels = batch["image"].pixels
        visible = self.visible(batch)
        masked = (~visible).nonzero()[:, 1].view(len(visible), -1).to(pixels.device, non_blocking=True)  # (B, M)
        grid = square_grid(pixels.shape[2:], self.backbone.patch_size)
        output, target = self.predict(pixels, visible), self.target(pixels, grid)
        similarity = F.cosine_similarity(pick(output, masked), pick(target, masked), dim=-1)
        loss = 2 - 2 * similarity.mean()
        return Losses(loss, {"feature_loss": loss.detach()})

    def visible(self, batch: Batch) -> Tensor:
        """(B, N) bool, on the CPU: the patches that are visible, a function of image and epoch."""
        patches = square_grid(batch["image"].pixels.shape[2:], self.backbone.patch_size) ** 2
        return random_visible(batch.uniform(patches), count_visible(patches, self.mask_ratio))

    def predict(self, pixels: Tensor, visible: Tensor) -> Tensor:
        """The teacher's features of all patches, (B, N, width), predicted from the visible ones.

        Args:
            pixels: (B, 3, S, S).
            visible: (B, N) bool, on the CPU, the same number in each row.
        """
        return full_precision(self.head(*encode_visible(self.backbone.net.model, pixels, visible)))

    def initialize(self) -> None:
        initialize_transformer(self.backbone.net.model)

    def check(self, sizes: Mapping[str, tuple[int, ...]], batch_size: int, processes: int = 1) -> None:
        super().check(sizes, batch_size, processes)
        count_visible(square_grid(sizes["image"], self.backbone.patch_size) ** 2, self.mask_ratio)
