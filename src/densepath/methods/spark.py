"""SparK: a ConvNet sees some patches of an image, as a sparse network would, and a decoder predicts the others."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

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
from densepath.methods.base import Losses, Method, Reconstruction
from densepath.nets.backbones import Backbone
from densepath.nets.decoders.light import LightDecoder
from densepath.nets.sparse import Visible, check_sparse, encode_sparsely
from densepath.views.augment import Augment
from densepath.views.declarations import Declaration
from densepath.views.view import Batch

_SCALES = 4  # maps of the encoder that the decoder gets


class SparK(Method):
    """Masked patches are predicted from features of the visible ones, at four resolutions.

    An image is divided into patches as large as the network's stride. With S_i the sparse features of stage i, which
    are empty at masked positions, D_i = proj_i(S_i, with a learned token at empty positions) (Equation 3), and the
    decoder's blocks B_i, D'_i = B_i(D'_{i+1}) + D_i (Equation 2) from the smallest map to the largest,

    L = mean over the masked patches of |y - x|^2 / (pixels and channels of a patch),

    where y is the output of the decoder and x are the pixels of a patch, standardized to mean 0 and variance 1.
    Features are normalized over visible positions before tokens fill the others. Masks are a function of image and
    epoch.

    Args:
        backbone: the encoder, a ConvNet without global operations: ResNet, ResNeXt, RegNetX, ConvNeXt (not V2).
        mask_ratio: share of masked patches.
        decoder_dim: channels of the decoder's first block; each block halves them.

    Raises:
        UserError: the backbone has no sparse form or no maps of strides 4 to 32, or a number is invalid.

    Source: Tian et al., ICLR 2023, arXiv 2301.03580; the decoder's layers as released.
    """

    batch_norm = "synchronized"

    def __init__(
        self,
        backbone: Backbone,
        mask_ratio: float = 0.6,
        decoder_dim: int = 768,
    ) -> None:
        from timm.layers import LayerNorm2d

        super().__init__()
        if len(backbone.stages) < _SCALES:
            raise UserError(
                f"SparK needs a ConvNet with maps of strides 4 to 32, which {backbone.name} is not; choose one with "
                "--backbone, e.g. resnet18 (mae is the method for vision transformers)"
            )
        check_sparse(backbone)
        self.backbone = backbone
        self.patch = backbone.strides[backbone.deepest][0]
        self.stages = backbone.stages[: -_SCALES - 1 : -1]  # the smallest map first
        strides = [backbone.strides[stage][0] for stage in self.stages]
        if any(large != 2 * small for large, small in pairwise(strides)):
            raise UserError(
                f"SparK needs maps of strides 4, 8, 16 and 32, and those of {backbone.name} have "
                f"{', '.join(map(str, reversed(strides)))}; leave out --output_stride"
            )
        self.decoder = LightDecoder(decoder_dim, backbone.deepest, backbone.in_channels)
        normed = any(isinstance(module, _BatchNorm) for module in backbone.modules())
        self.densify = nn.ModuleList(
            Densify(backbone.channels[stage], dim, nn.BatchNorm2d if normed else LayerNorm2d, 3 if number else 1)
            for number, (stage, dim) in enumerate(zip(self.stages, self.decoder.channels, strict=False))
        )
        self.mask_ratio = mask_ratio

    @staticmethod
    def views(augment: Augment | None = None) -> dict[str, Declaration]:
        """Large crops and flips; the colors stay."""
        plain = Augment(scale=(0.67, 1.0), jitter=0.0, grayscale=0.0, blur=0.0, interpolation="bicubic")
        return {"image": (augment or plain).random_view()}

    def forward(self, batch: Batch) -> Losses:
        pixels = batch["image"].pixels
        visible = self.visible(batch)
        prediction = to_patches(self.predict(pixels, visible), self.patch)
        target, _, _ = standardize_patches(to_patches(pixels, self.patch))
        errors = (prediction - target).square().mean(-1)
        loss = masked_mean(errors.flatten(), ~visible.patches.flatten())
        return Losses(loss, {"reconstruction_loss": loss.detach()})

    def visible(self, batch: Batch) -> Visible:
        """The visible patches of the images of a batch."""
        pixels = batch["image"].pixels
        along = square_grid(pixels.shape[2:], self.patch)
        count = count_visible(along**2, self.mask_ratio)
        patches = random_visible(batch.uniform(along**2), count).view(-1, along, along)
        return Visible(patches.to(pixels.device, non_blocking=True), count)

    def predict(self, pixels: Tensor, visible: Visible) -> Tensor:
        """Predict the pixels of images (B, 3, S, S), standardized patch by patch, in the same shape."""
        maps = encode_sparsely(self.backbone, pixels, visible, self.stages)
        dense = [densify(maps[stage], visible) for densify, stage in zip(self.densify, self.stages, strict=True)]
        return full_precision(self.decoder(dense))

    @torch.no_grad()
    def reconstruct(self, batch: Batch) -> Reconstruction:
        pixels = batch["image"].pixels
        visible = self.visible(batch)
        _, mean, deviation = standardize_patches(to_patches(pixels, self.patch))
        prediction = to_patches(self.predict(pixels, visible), self.patch) * deviation + mean
        prediction = from_patches(prediction, self.patch, pixels.shape[-1] // self.patch)
        seen = visible.mask(pixels.shape[-1])
        return Reconstruction(pixels, pixels * seen, pixels, prediction, ~seen)

    def check(self, sizes: Mapping[str, tuple[int, ...]], batch_size: int, processes: int = 1) -> None:
        super().check(sizes, batch_size, processes)
        count_visible(square_grid(sizes["image"], self.patch) ** 2, self.mask_ratio)


class Densify(nn.Module):
    """Makes a sparse map dense: normalizes it, fills hidden positions with a learned token, and projects it.

    Args:
        in_channels, out_channels: channels of the encoder and of the decoder.
        norm: class of the norm over visible positions.
        window: kernel size of the projection.

    Source: SparK (ICLR 2023), Equation 3; the norm as released.
    """

    def __init__(self, in_channels: int, out_channels: int, norm: type[nn.Module], window: int) -> None:
        super().__init__()
        self.norm = norm(in_channels)
        self.mask_token = nn.Parameter(torch.empty(1, in_channels, 1, 1))
        self.project = nn.Conv2d(in_channels, out_channels, window, padding=window // 2)
        nn.init.trunc_normal_(self.mask_token, std=0.02, a=-0.02, b=0.02)

    def forward(self, x: Tensor, visible: Visible) -> Tensor:
        """(B, in_channels, h, h) as (B, out_channels, h, h)."""
        x = visible.scatter(self.norm(visible.gather(x)))
        return self.project(visible.fill(x, self.mask_token))

    def no_weight_decay(self) -> set[str]:
        """The names of parameters without weight decay."""
        return {"mask_token"}
