"""A frozen backbone with pooling: images as they are stored -> one vector each."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from densepath.core.digests import digest_of_tensors
from densepath.core.errors import UserError
from densepath.core.regions import global_pool
from densepath.nets.attention_pool import AttentionPool
from densepath.nets.backbones import Backbone
from densepath.nets.weights.pretrained import pretrained_backbone
from densepath.nets.weights.published import is_published, read_published
from densepath.sources.other_bits import seen_as, warn_of_mixed_bits
from densepath.sources.pixel_source import PixelSource, PixelSpec

Pool = Literal["auto", "mean", "cls", "cls_mean", "attention"]


class Encoder(nn.Module):
    """The pooled features of a stage of a backbone.

    Args:
        backbone: the backbone.
        spec: the meaning of the stored pixels.
        stage: the stage; by default the deepest.
        pool: "mean" over all positions of the stage's map (the patch tokens of a vision transformer); "cls" for the
            class token after the last block and the final norm; "cls_mean" for both, one after the other; "attention"
            for the attention pool of the weights; "auto" for "attention" if there is such a pool, else "cls" if there
            is a class token, else "mean".
        attention: the attention pool of the weights, if they have one.

    Attributes:
        dim: D, the length of a vector.
        input_size: side in pixels of the images that the positions of a vision transformer were trained for; None for a
            ConvNet.

    Raises:
        UserError: the stage or the class token does not exist.
    """

    def __init__(
        self,
        backbone: Backbone,
        spec: PixelSpec,
        stage: int | None = None,
        pool: Pool = "auto",
        attention: AttentionPool | None = None,
    ) -> None:
        super().__init__()
        self.backbone, self.spec = backbone, spec
        self.stage = backbone.deepest if stage is None else stage
        backbone.check_stage(self.stage)
        transformer = getattr(backbone.net, "model", None) if backbone.patch_size > 1 else None
        has_class = getattr(transformer, "cls_token", None) is not None
        best: Pool = "attention" if attention is not None else "cls" if has_class else "mean"
        self.pool: Pool = best if pool == "auto" else pool
        self.attention = attention if self.pool == "attention" else None
        if self.pool == "attention" and attention is None:
            raise UserError("only embed and probe with weights of CONCH have an attention pool; use --pool auto")
        if self.pool in ("cls", "cls_mean") and not has_class:
            raise UserError(f"{backbone.name} has no class token; use --pool mean")
        self.dim = backbone.channels[self.stage] * (2 if self.pool == "cls_mean" else 1)
        if self.attention is not None:
            self.dim = self.attention.query.shape[1]
        embedding: Any = getattr(transformer, "patch_embed", None)
        self.input_size: int | None = None if embedding is None else int(embedding.img_size[0])

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, *size, C) stored pixels -> (B, dim) float32."""
        return self.pooled(self.spec.network_input(pixels))

    def pooled(self, x: Tensor) -> Tensor:
        """(B, C, *size) normalized pixels -> (B, dim) float32."""
        if self.pool == "mean":
            return global_pool(self.backbone(x, last=self.stage)[self.stage].float())
        self.backbone.check_size(*x.shape[2:])
        tokens = self.backbone.net.model.forward_features(x).float()  # (B, prefix + patches, C)
        if self.attention is not None:
            return self.attention(tokens).float()
        if self.pool == "cls":
            return tokens[:, 0]
        return torch.cat((tokens[:, 0], tokens[:, self.backbone.net.model.num_prefix_tokens :].mean(1)), dim=1)

    def notes(self) -> dict[str, Any]:
        """What identifies the features."""
        return {
            "weights_digest": digest_of_tensors((self.backbone if self.attention is None else self).state_dict()),
            "backbone": self.backbone.name,
            "stage": self.stage,
            "pool": self.pool,
            "pixels": self.spec.record(),
        }


def load_encoder(
    weights: str | Path,
    backbone: str | nn.Module | None = None,
    images: PixelSource | None = None,
    *,
    stage: int | None = None,
    pool: Pool = "auto",
    seed: int = 0,
) -> tuple[Encoder, str]:
    """The frozen encoder of weights, in evaluation mode on the CPU.

    Grey and RGB images are read with the channels of the weights; others, and volumes, need weights for them. If the
    weights are of 8-bit images and the images have 16 bits, or the other way round, the window is that of the images.

    Args:
        weights, backbone: as for :func:`~densepath.nets.weights.pretrained.pretrained_backbone`.
        images: what it will see; by default images as the weights need them.
        stage, pool: as for :class:`Encoder`.
        seed: seed of random weights.

    Returns:
        The encoder, and one line that reports what was loaded.

    Raises:
        UserError: the weights do not fit, or the stage or class token does not exist.
    """
    torch.manual_seed(seed)
    other = images is not None and (images.spec.ndim != 2 or images.spec.channels not in (1, 3))
    network, spec, size, line = pretrained_backbone(weights, backbone, images.spec if images and other else None)
    if images is not None:
        spec = seen_as(spec, images)
        warn_of_mixed_bits(images, spec)
    attention = read_published(weights).pool if pool in ("auto", "attention") and is_published(weights) else None
    encoder = Encoder(network, spec, stage, pool, attention)
    if encoder.input_size is not None:
        encoder.input_size = size or encoder.input_size
    return encoder.eval().requires_grad_(False), line


def input_size(encoder: Encoder, size: int | None) -> int | None:
    """The side to which images are resized and cut; None if they are used as they are.

    Raises:
        UserError: it does not fit the network.
    """
    if size is None:
        return encoder.input_size
    if size < 0:
        raise UserError(f"size is {size}; give pixels, or 0 for images as they are")
    if size:
        encoder.backbone.check_size(*[size] * encoder.backbone.ndim)
    return size or None
