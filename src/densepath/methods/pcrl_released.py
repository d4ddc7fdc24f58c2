"""PCRL as released: a gate instead of the outer product, C2L's contrast, and four reconstructions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densepath.core.distillation import deviation
from densepath.core.errors import UserError
from densepath.core.losses import full_precision
from densepath.methods.base import Losses, Reconstruction
from densepath.methods.c2l import C2L, C2LOptions, Maps
from densepath.methods.collapse import output_spread
from densepath.methods.option_effects import Needed, With
from densepath.nets.backbones import Backbone
from densepath.nets.decoders.build import build_decoder, decoder_state
from densepath.nets.heads import MLPHead
from densepath.nets.transformation_attention import TransformationAttention
from densepath.sources.pixel_source import PixelSource, check_unit_range
from densepath.views.augment import Augment
from densepath.views.corruptions import Cutout, Painting
from densepath.views.declarations import Declaration, Turned, window_views
from densepath.views.local_shuffle import LocalShuffle
from densepath.views.turns import indicator
from densepath.views.view import Batch

_PAINTING = 0.9


class PCRLReleased(C2L):
    """The released code of PCRL for radiographs and volumes.

    As :class:`C2L` with temperature 0.2 and a head of two layers, and with a U-Net decoder D. With the ordinary maps F
    and the momentum maps G of the views x_1 and x_2, a_1 = max(l, 1 - l), gates A of the deepest maps
    (:class:`TransformationAttention`) and flips and turns T, mixed views x' and mixed clean views X',

    L = C2L + 1/4 (|D(A_1 F) - T_1 x_1|^2 + |D(a_1 A_1 F + (1 - a_1) A_2 G) - (a_1 T_1 x_1 + (1 - a_1) T_2 x_2)|^2
                 + |D(F') - X'_1|^2 + |D(a_2 F' + (1 - a_2) G') - (a_2 X'_1 + (1 - a_2) X'_2)|^2),

    where targets of the first two are corrupted views, and the last two have no gates. The clean views of the released
    code are neither rotated by up to 10 degrees nor flipped, as their inputs are; ours are aligned with the inputs.

    Views of images have three holes; those of volumes are shuffled locally, and both painted inside, both
    outside, or neither.
    The released code also scales volumes by 0.9 to 1.1 and leaves out windows that are mostly air; ours does not.

    Args:
        backbone: the ordinary encoder.
        temperature: temperature of the contrast.
        windows: sizes in pixels, in the order of the tensor's axes: the crops are then pairs of windows, each of one of
            these sizes, resized to the views, as in volumes.
        min_iou: the least intersection over union of such a pair.
        border: distance of windows from the edges of an image along each axis, where it is large enough.
        painting: probability that both views of a volume are painted; those of images never are.
        sigmoid: whether a sigmoid follows the predicted pixels, which then are in [0, 1]: for mean 0 and std 1.
        **options: as in :class:`C2L`.

    Source: the code of Zhou et al., ICCV 2021. See :class:`~densepath.methods.pcrl.PCRL` for the paper.
    """

    needed_options: ClassVar[Needed] = {"min_iou": (With("windows"),), "border": (With("windows"),)}

    def __init__(
        self,
        backbone: Backbone,
        temperature: float = 0.2,
        windows: tuple[tuple[int, ...], ...] = (),
        min_iou: float = 0.25,
        border: tuple[int, ...] = (),
        painting: float = _PAINTING,
        sigmoid: bool = False,
        **options: Unpack[C2LOptions],
    ) -> None:
        if backbone.ndim == 2 and painting != _PAINTING:
            raise UserError(f"the views of images are not painted; leave out --method.painting {painting}")
        super().__init__(backbone, temperature=temperature, **options)
        width, ndim = backbone.channels[backbone.deepest], backbone.ndim
        self.gate = TransformationAttention(width, ndim + 4, "gate", ndim=ndim)
        self.decoder, self.pixels = build_decoder(backbone)
        self.sigmoid = sigmoid
        views = partial(self.views, windows=windows, min_iou=min_iou, border=border, painting=painting, ndim=ndim)
        self.views = views  # type: ignore[method-assign]

    @staticmethod
    def make_head(width: int, dim: int) -> nn.Module:
        return MLPHead(width, dim, dim)

    @staticmethod
    def views(
        augment: Augment | None = None,
        windows: tuple[tuple[int, ...], ...] = (),
        min_iou: float = 0.25,
        border: tuple[int, ...] = (),
        painting: float = _PAINTING,
        ndim: int = 2,
    ) -> dict[str, Declaration]:
        """Two corrupted crops, the same crops clean, and the corrupted ones flipped and turned."""
        own = Augment(rotation=10.0, jitter=1.0, hue=0.4)
        view = (augment or own).random_view()
        corruptions = (Cutout(),) if ndim == 2 else (LocalShuffle(), Painting(painting, same_choice=True))
        view = replace(view, appearance=(*view.appearance, *corruptions))
        first, second = (view, view) if not windows else window_views(view, windows, min_iou, border, equal=False)
        same = {"flip": (0.0,) * 3, "quarter_turns": False, "clean": True}
        return {
            "first": first,
            "second": second,
            "first_clean": Turned("first", **same),  # type: ignore[arg-type]
            "second_clean": Turned("second", **same),  # type: ignore[arg-type]
            "first_target": Turned("first"),
            "second_target": Turned("second"),
        }

    def forward(self, batch: Batch) -> Losses:
        own, other = self.backbone(batch["first"].pixels), self.encode_keys(batch, batch["second"].pixels)
        share = self.share(batch, 0)
        mixed_own, mixed_other = self.mixed_maps(batch, share)
        pairs = self.predictions(batch, share, (own, other), (mixed_own, mixed_other))
        k = self.embed_keys(other)
        contrast = self.contrasts(batch, share, self.embed(own), k, self.embed(mixed_own), self.embed_keys(mixed_other))
        errors = torch.stack([F.mse_loss(full_precision(y), x) for y, x in pairs]).mean()
        statistics = {"key_spread": deviation(k), "output_spread": output_spread(*pairs[0])}
        terms = {"instance_loss": contrast.detach(), "reconstruction_loss": errors.detach()}
        return Losses(contrast + errors, terms, statistics)

    def mixed_maps(self, batch: Batch, share: float) -> tuple[Maps, Maps]:
        """The ordinary and the momentum maps of mixed views."""
        first, second = (self.mixed(batch, share, batch[name].pixels) for name in ("first", "second"))
        return self.backbone(first), self.encode_keys(batch, second)

    def predictions(
        self, batch: Batch, share: float, maps: tuple[Maps, Maps], mixed: tuple[Maps, Maps]
    ) -> list[tuple[Tensor, Tensor]]:
        """The four predictions and their targets."""
        first, second = self.share(batch, 1), self.share(batch, 2)
        targets = [batch[f"{name}_target"].pixels for name in ("first", "second")]
        clean = [self.mixed(batch, share, batch[f"{name}_clean"].pixels) for name in ("first", "second")]
        gated = [self.gated(batch, name, each) for name, each in zip(("first", "second"), maps, strict=True)]
        return [
            (self.decode(gated[0], targets[0]), targets[0]),
            self.hybrid(first, gated, targets),
            (self.decode(mixed[0], clean[0]), clean[0]),
            self.hybrid(second, list(mixed), clean),
        ]

    def hybrid(self, share: float, maps: list[Maps], targets: list[Tensor]) -> tuple[Tensor, Tensor]:
        """The prediction from mixed maps, and the mixed target."""
        target = share * targets[0] + (1 - share) * targets[1]
        return self.decode({i: share * maps[0][i] + (1 - share) * maps[1][i] for i in maps[0]}, target), target

    def gated(self, batch: Batch, name: str, maps: Maps) -> Maps:
        """The maps, the deepest scaled by the gate of the target's transformation."""
        deepest = self.backbone.deepest
        vector = indicator(batch[name].map, batch[f"{name}_target"].map)
        return {**maps, deepest: self.gate(maps[deepest], vector.to(maps[deepest].device, non_blocking=True))}

    def decode(self, maps: Maps, target: Tensor) -> Tensor:
        """Predicted pixels, in the shape of the target."""
        made = self.pixels(self.decoder(maps, target.shape[2:]))
        return torch.sigmoid(full_precision(made)) if self.sigmoid else made

    def prepare(self, images: PixelSource, given: Mapping[str, Any] = MappingProxyType({})) -> str | None:
        if self.sigmoid:
            check_unit_range(images.spec)
        return None

    @torch.no_grad()
    def reconstruct(self, batch: Batch) -> Reconstruction:
        own, other = self.backbone(batch["first"].pixels), self.encode_keys(batch, batch["second"].pixels)
        share = self.share(batch, 0)
        pairs = self.predictions(batch, share, (own, other), self.mixed_maps(batch, share))
        (made, true), first = pairs[0], batch["first"].pixels
        return Reconstruction(first, batch["first_clean"].pixels, true, made, torch.ones_like(true[:, :1]).bool())

    def exported_parts(self) -> dict[str, dict[str, Tensor]]:
        """The decoder and its head, with the names of Models Genesis or of segmentation_models_pytorch."""
        return {"decoder": decoder_state(self.decoder, self.pixels)}
