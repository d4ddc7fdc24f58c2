"""MAE: a vision transformer sees a quarter of an image's patches, and a small decoder predicts the others."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from densepath.core.losses import full_precision, masked_mean
from densepath.core.masking import (
    count_visible,
    enlarge,
    from_patches,
    random_visible,
    square_grid,
    standardize_patches,
    to_patches,
)
from densepath.methods.base import Losses, Method, Reconstruction
from densepath.nets.backbones import Backbone
from densepath.nets.backbones.transformer_parts import (
    encode_visible,
    fix_positions,
    initialize_transformer,
    require_transformer,
)
from densepath.nets.decoders.tokens import TokenDecoder
from densepath.views.augment import Augment
from densepath.views.declarations import Declaration
from densepath.views.view import Batch


class MAE(Method):
    """Masked patches are predicted from the visible ones.

    With y_p the pixels of patch p, standardized to mean 0 and variance 1, x_V the visible patches, M the
    masked ones, f the encoder and d the decoder (section 3),

    L = mean over p in M of |y_p - d(f(x_V))_p|^2 / (pixels and channels of a patch).

    The encoder runs only on the class token and the visible patches: a step costs about as much as the decoder and a
    quarter of the encoder. Masks are a function of image and epoch. Initial weights are those of the released code
    (:meth:`initialize`). As in mmselfsup, with which Conv-MIM compares, the recipe has no weight decay on biases, norms
    and class and mask tokens; the released code has it on the tokens.

    Args:
        backbone: the encoder, a vision transformer.
        mask_ratio: share of masked patches.
        decoder_depth: number of blocks of the decoder.
        decoder_dim: width of the decoder.
        decoder_heads: attention heads of the decoder.
        fixed_positions: whether fixed sines and cosines replace the backbone's position embeddings. Otherwise these are
            trained further: for weights that have embeddings of their own.

    Raises:
        UserError: the backbone is a ConvNet, or the decoder's width and heads are not consistent.

    Source: He et al., CVPR 2022, arXiv 2111.06377.
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
        super().__init__()
        model = require_transformer(backbone, "MAE")
        if fixed_positions:
            fix_positions(model)
        self.backbone = backbone
        self.patch = backbone.patch_size
        colors = backbone.in_channels
        self.decoder = TokenDecoder(
            model.num_features, decoder_dim, decoder_depth, decoder_heads, colors * self.patch**2
        )
        self.mask_ratio = mask_ratio

    @staticmethod
    def views(augment: Augment | None = None) -> dict[str, Declaration]:
        """Crops and flips; the colors stay."""
        plain = Augment(jitter=0.0, grayscale=0.0, blur=0.0, interpolation="bicubic")
        return {"image": (augment or plain).random_view()}

    def forward(self, batch: Batch) -> Losses:
        pixels = batch["image"].pixels
        visible = self.visible(batch)
        prediction = self.predict(pixels, visible)
        target, _, _ = standardize_patches(to_patches(pixels, self.patch))
        errors = (prediction - target).square().mean(-1)
        masked = ~visible.to(errors.device, non_blocking=True)
        loss = masked_mean(errors.flatten(), masked.flatten())
        return Losses(loss, {"reconstruction_loss": loss.detach()})

    def visible(self, batch: Batch) -> Tensor:
        """(B, N) bool, on the CPU: the patches that are visible."""
        patches = square_grid(batch["image"].pixels.shape[2:], self.patch) ** 2
        return random_visible(batch.uniform(patches), count_visible(patches, self.mask_ratio))

    def predict(self, pixels: Tensor, visible: Tensor) -> Tensor:
        """Predict all patches.

        Args:
            pixels: (B, 3, S, S).
            visible: (B, N) bool, on the CPU, the same number in each row.

        Returns:
            (B, N, C * patch**2), standardized pixels.
        """
        return full_precision(self.decoder(*encode_visible(self.backbone.net.model, pixels, visible)))

    @torch.no_grad()
    def reconstruct(self, batch: Batch) -> Reconstruction:
        pixels = batch["image"].pixels
        visible = self.visible(batch)
        _, mean, deviation = standardize_patches(to_patches(pixels, self.patch))
        along = pixels.shape[-1] // self.patch
        prediction = from_patches(self.predict(pixels, visible) * deviation + mean, self.patch, along)
        seen = enlarge(visible.view(-1, along, along), pixels.shape[-1]).to(pixels.device)
        return Reconstruction(pixels, pixels * seen, pixels, prediction, ~seen)

    def initialize(self) -> None:
        initialize_transformer(self.backbone.net.model)

    def check(self, sizes: Mapping[str, tuple[int, ...]], batch_size: int, processes: int = 1) -> None:
        super().check(sizes, batch_size, processes)
        count_visible(square_grid(sizes["image"], self.patch) ** 2, self.mask_ratio)
