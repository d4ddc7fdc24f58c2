"""Model Genesis: a U-Net restores images from shuffled, remapped and painted ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor

from densepath.core.losses import full_precision
from densepath.methods.base import Losses, Method, Reconstruction
from densepath.methods.collapse import output_spread
from densepath.nets.backbones import Backbone
from densepath.nets.decoders.build import build_decoder, decoder_state
from densepath.sources.pixel_source import PixelSource, PixelSpec
from densepath.views.augment import Augment
from densepath.views.corruptions import Bezier, Corruption, Painting
from densepath.views.crops import Pattern, Window, pose_of
from densepath.views.declarations import Declaration, Turned
from densepath.views.local_shuffle import LocalShuffle
from densepath.views.view import Batch


class ModelGenesis(Method):
    """Restoration of a corrupted view, by a U-Net D with a sigmoid at its end.

    L = mean over the pixels, in [0, 1], of  (D(corrupted x) - x)^2.

    Corruptions are local shuffling (probability 0.5), a Bezier remapping of intensities (0.9), and in- or out-painting
    (0.9, of which 0.2 inside).

    Its known failure is one output for all pixels, which the statistic ``output_spread`` shows and a warning reports.

    Args:
        backbone: the encoder.
        resize: whether crops are resized to the views; if not, they are windows of the views' size, as in volumes.

    Source: Zhou et al., MICCAI 2019, arXiv 1908.06912; the corruptions as released.
    """

    batch_norm = "synchronized"
    augment: ClassVar[Augment] = Augment(jitter=0.0, grayscale=0.0, blur=0.0)
    corruptions: ClassVar[tuple[Corruption, ...]] = (LocalShuffle(), Bezier(), Painting())
    mean: Tensor
    std: Tensor

    def __init__(self, backbone: Backbone, resize: bool = True) -> None:
        super().__init__()
        self.backbone = backbone
        self.decoder, self.head = build_decoder(backbone)
        if not resize:
            self.views = partial(self.views, crop=Window())  # type: ignore[method-assign]
        shape = (-1, *[1] * backbone.ndim)
        spec = PixelSpec.default(backbone.in_channels)
        self.register_buffer("mean", torch.tensor(spec.mean).view(shape))
        self.register_buffer("std", torch.tensor(spec.std).view(shape))

    @classmethod
    def views(
        cls,
        augment: Augment | None = None,
        crop: Window | Pattern | None = None,
        corruptions: tuple[Corruption, ...] | None = None,
    ) -> dict[str, Declaration]:
        """A corrupted crop, resized or of a given kind, and the same one without corruption."""
        view = (augment or cls.augment).random_view()
        own = view.crop if crop is None else replace(crop, **pose_of(view.crop))
        changes = cls.corruptions if corruptions is None else corruptions
        view = replace(view, crop=own, appearance=(*view.appearance, *changes))
        return {"image": view, "target": Turned("image", (0.0,) * 3, quarter_turns=False, clean=True)}

    def prepare(self, images: PixelSource, given: Mapping[str, Any] = MappingProxyType({})) -> str | None:
        """The images' normalization becomes part of the network."""
        self.mean.copy_(torch.tensor(images.spec.mean).view(self.mean.shape))
        self.std.copy_(torch.tensor(images.spec.std).view(self.std.shape))
        return None

    def forward(self, batch: Batch) -> Losses:
        target = batch["target"].pixels * self.std + self.mean
        prediction = self.predict(batch["image"].pixels)
        loss = (prediction - target).square().mean()
        return Losses(loss, {"restoration_loss": loss.detach()}, {"output_spread": output_spread(prediction, target)})

    def predict(self, pixels: Tensor) -> Tensor:
        """The restored pixels in [0, 1] of views (B, C, *size)."""
        return torch.sigmoid(full_precision(self.head(self.decoder(self.backbone(pixels), pixels.shape[2:]))))

    @torch.no_grad()
    def reconstruct(self, batch: Batch) -> Reconstruction:
        pixels, target = batch["image"].pixels, batch["target"].pixels
        made = (self.predict(pixels) - self.mean) / self.std
        return Reconstruction(pixels, pixels, target, made, torch.ones_like(target[:, :1], dtype=torch.bool))

    def exported_parts(self) -> dict[str, dict[str, Tensor]]:
        """The decoder and its head, with the names of Models Genesis or of segmentation_models_pytorch."""
        return {"decoder": decoder_state(self.decoder, self.head)}
