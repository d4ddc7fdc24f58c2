"""Conv-MIM: a ConvNet sees the visible patches of a view, and predicts the hidden ones as they are in another view."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from densepath.core.affine import between
from densepath.core.errors import UserError
from densepath.core.losses import full_precision, masked_mean
from densepath.core.masking import (
    count_visible,
    from_patches,
    random_visible,
    square_grid,
    standardize_patches,
    to_patches,
)
from densepath.core.resampling import sample, sample_nearest
from densepath.methods.base import Losses, Method, Reconstruction
from densepath.methods.option_effects import Needed, With, one_of
from densepath.nets.backbones import Backbone
from densepath.nets.decoders.multi_scale import MultiScaleDecoder
from densepath.nets.masked_stem import MaskedStages, MaskedStem
from densepath.nets.sparse import Visible
from densepath.views.augment import Augment
from densepath.views.declarations import Declaration
from densepath.views.view import Batch


class ConvMIM(Method):
    """Convolutional masked image modelling, invariant to affine maps and colors.

    The query x_q = c(t1(x)) has changed colors, the target x_k = t2(x) has not. A random part of the query's patches is
    visible (mask m). The features z_1 ... z_N, with a learned MASK at hidden positions (see :class:`MaskedStem`), are
    mapped to the target's frame and decoded there (Equations 4 to 6),

    z_i^k = t2(t1^-1(z_i)),    x_hat = d(sum over i of Conv_i(z_i^k)),

    and L is the mean of (x_k - x_hat)^2 over the pixels of x_k that t2(t1^-1(1 - m)) selects (Equation 7): those that
    are in a hidden patch of the query (nearest neighbor), where the views overlap.

    No code was released. Choices that the paper leaves open: L is divided by the number of selected pixels, of all
    processes (an image whose views share no hidden pixels does not count). Features are resampled like the pixels of
    views, bilinearly, with a wider filter if the target shows a larger part of the image, and are zero outside the
    query. Maps that are coarser than the patches are sampled at the patches; finer ones are reduced by convolutions
    that do not overlap. The text sometimes says that "unmasked" pixels are decoded; Equation 7 and the figure have the
    masked ones.

    Args:
        backbone: the ConvNet to train.
        mask_ratio: share of hidden patches.
        patch: side of a patch in pixels; a multiple or a divisor of the strides of the backbone's stages.
        masking: where MASK is inserted: after the "stem", or in each output of an encoder that sees only the visible
            patches ("sparse": with ``invariance`` it is "Emb. invariance" of Table 2, here with all stages).
        stem: end of a ResNet's stem: before or after its max-pool. The paper leaves it open. Other backbones have no
            max-pool there, and "after_pool" is refused.
        invariance: whether the target is another view; otherwise it is the query itself, with its colors (t1 = t2:
            "Emb. masking" of Table 2).
        normalize_target: predict each patch of the target with mean 0 and variance 1. The statistics are of the whole
            patch, although the selected pixels, which are not aligned with the target's patches, may be only a part.
        width: dimension of the decoder's tokens.
        heads: attention heads of the decoder.

    Source: Yang et al., Convolutional Masked Image Modeling for Dense Prediction Tasks on Pathology Images, WACV 2024.
    """

    batch_norm = "synchronized"
    needed_options: ClassVar[Needed] = {"stem": (With("masking", one_of("stem")),)}

    def __init__(
        self,
        backbone: Backbone,
        mask_ratio: float = 0.7,
        patch: int = 32,
        masking: Literal["stem", "sparse"] = "stem",
        stem: Literal["before_pool", "after_pool"] = "before_pool",
        invariance: bool = True,
        normalize_target: bool = False,
        width: int = 256,
        heads: int = 8,
    ) -> None:
        super().__init__()
        if masking not in ("stem", "sparse"):
            raise UserError(f"unknown masking {masking!r}; there are: stem, sparse")
        self.backbone = backbone
        self.encoder = MaskedStem(backbone, stem) if masking == "stem" else MaskedStages(backbone)
        strides = self.encoder.strides
        least = strides[0] if masking == "stem" else strides[-1]
        if patch < least or any(max(patch, stride) % min(patch, stride) for stride in strides):
            raise UserError(
                f"patches of {patch} px do not fit the strides {', '.join(map(str, strides))} of {backbone.name}"
                f"{' and sparse masking' if masking == 'sparse' else ''}; use e.g. 32"
            )
        positions = [max(1, patch // stride) for stride in strides]  # of each map along a side of a patch
        self.decoder = MultiScaleDecoder(self.encoder.channels, positions, patch, width, heads, backbone.in_channels)
        self.positions = positions
        self.patch = patch
        self.mask_ratio = mask_ratio
        self.normalize_target = normalize_target
        self.target = "target" if invariance else "query"
        self.unused_views = () if invariance else ("target",)

    @staticmethod
    def views(augment: Augment | None = None) -> dict[str, Declaration]:
        view = (augment or Augment()).random_view()
        return {"query": view, "target": replace(view, appearance=())}

    def forward(self, batch: Batch) -> Losses:
        visible = self.draw_visible(batch)
        prediction = full_precision(self.predict(batch, visible))
        target = to_patches(batch[self.target].pixels, self.patch)
        if self.normalize_target:
            target = standardize_patches(target)[0]
        errors = (
            (prediction - target).square().unflatten(2, (-1, self.backbone.in_channels)).mean(3)
        )  # (B, patches, pixels)
        counted = self.counted(batch, visible)
        loss = masked_mean(errors.flatten(), to_patches(counted, self.patch).flatten())
        statistics = {"counted_pixels": counted.float().mean()}
        return Losses(loss, {"reconstruction_loss": loss.detach()}, statistics)

    def draw_visible(self, batch: Batch) -> Visible:
        """The visible patches m of the query."""
        pixels = batch["query"].pixels
        along = square_grid(pixels.shape[2:], self.patch)
        count = count_visible(along**2, self.mask_ratio)
        patches = random_visible(batch.uniform(along**2), count).unflatten(1, (along, along))
        return Visible(patches.to(pixels.device, non_blocking=True), count)

    def predict(self, batch: Batch, visible: Visible) -> Tensor:
        """The target's patches, (B, h * h, patch * patch * C), predicted from the visible patches of the query."""
        maps = self.encoder(self.backbone, batch["query"].pixels, visible)
        target_to_query, along = self.target_to_query(batch), visible.patches.shape[-1]
        aligned = [
            sample(z, target_to_query, (along * n, along * n)) for z, n in zip(maps, self.positions, strict=True)
        ]
        patches: Tensor = self.decoder(aligned)
        return patches

    def counted(self, batch: Batch, visible: Visible) -> Tensor:
        """t2(t1^-1(1 - m)): the target's pixels that are hidden in the query, (B, 1, S, S) bool."""
        size = batch["query"].pixels.shape[-2:]
        return sample_nearest((~visible.patches).unsqueeze(1).float(), self.target_to_query(batch), size).bool()

    def target_to_query(self, batch: Batch) -> Tensor:
        """The maps (B, 2, 3) from the target's coordinates to the query's."""
        return between(batch["query"].map, batch[self.target].map)

    @torch.no_grad()
    def reconstruct(self, batch: Batch) -> Reconstruction:
        visible = self.draw_visible(batch)
        view, target = batch["query"].pixels, batch[self.target].pixels
        patches = full_precision(self.predict(batch, visible))
        if self.normalize_target:
            _, mean, deviation = standardize_patches(to_patches(target, self.patch))
            patches = patches * deviation + mean
        prediction = from_patches(patches, self.patch, visible.patches.shape[-1])
        return Reconstruction(view, visible.clean(view), target, prediction, self.counted(batch, visible))

    def check(self, sizes: Mapping[str, tuple[int, ...]], batch_size: int, processes: int = 1) -> None:
        super().check(sizes, batch_size, processes)
        count_visible(square_grid(sizes["query"], self.patch) ** 2, self.mask_ratio)
