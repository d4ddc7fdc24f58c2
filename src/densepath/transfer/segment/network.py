"""Networks that give each pixel of an image, or voxel of a volume, a score for each class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import timm.layers
import torch.nn.functional as F
from torch import Tensor, nn

from densepath.core.errors import UserError
from densepath.core.losses import full_precision
from densepath.nets.backbones import Backbone
from densepath.nets.backbones.dilation import dilate_last_stage
from densepath.nets.decoders.build import Decoder, build_decoder
from densepath.nets.decoders.unet import UNetDecoder, pixel_head
from densepath.transfer.segment.config import Head

_FCN_WIDTH, _FCN_DILATION = 256, 6
_PYRAMID = (4, 2, 1)  # factors of a transformer's map


class SegmentationNet(nn.Module):
    """A backbone, a decoder, and a linear layer for each position.

    Args:
        backbone: any with stages; a vision transformer gets a :class:`TokenPyramid`.
        classes: K, their number.
        head: "unet" for a U-Net decoder with all stages as skips; "fcn" for :class:`FCNHead` on the deepest stage.
    """

    def __init__(self, backbone: Backbone, classes: int, head: Head = "unet") -> None:
        super().__init__()
        self.backbone = backbone
        self.pyramid = TokenPyramid(backbone) if backbone.patch_size > 1 and head == "unet" else None
        self.decoder: Decoder | FCNHead
        if head == "fcn":
            self.decoder = FCNHead(backbone)
        else:
            self.decoder = build_decoder(backbone)[0] if self.pyramid is None else UNetDecoder(self.pyramid)
        kernel = 3 if isinstance(self.decoder, UNetDecoder) else 1
        self.head = pixel_head(self.decoder.channels, classes, backbone.ndim, kernel)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *size) normalized images -> (B, K, *size) logits, float32."""
        maps: Mapping[int, Tensor] = self.backbone(x)
        if self.pyramid is not None:
            maps = self.pyramid(maps)
        logits = full_precision(self.head(self.decoder(maps, x.shape[2:])))
        if logits.shape[2:] != x.shape[2:]:
            mode = "bilinear" if x.ndim == 4 else "trilinear"
            logits = F.interpolate(logits, x.shape[2:], mode=mode, align_corners=False)
        return logits


class FCNHead(nn.Module):
    """Two 3 x 3 convolutions of dilation 6 with batch norm and ReLU on the deepest map.

    The last stage of a ResNet is dilated instead of strided, so that the map has stride 16; its weights and their names
    stay. Other networks keep their stride.

    Args:
        backbone: modified in place.

    Attributes:
        channels: channels of the result, which has the positions of the deepest map.

    Source: MoCo (CVPR 2020), appendix A.4, "FCN-16s", on which PCRL's Table 3 is based.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        if backbone.ndim != 2:
            raise UserError("the head fcn is for images; volumes need --head unet")
        if hasattr(backbone.net, "layer4"):
            dilate_last_stage(backbone)
        self._deepest, self.channels = backbone.deepest, _FCN_WIDTH
        layers: list[nn.Module] = []
        for before in (backbone.channels[backbone.deepest], _FCN_WIDTH):
            convolution = nn.Conv2d(before, _FCN_WIDTH, 3, padding=_FCN_DILATION, dilation=_FCN_DILATION, bias=False)
            nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
            layers += [convolution, nn.BatchNorm2d(_FCN_WIDTH), nn.ReLU()]
        self.layers = nn.Sequential(*layers)

    def forward(self, maps: Mapping[int, Tensor], size: Sequence[int]) -> Tensor:
        """(B, 256, *grid) from the maps of the backbone; ``size`` is not used."""
        out: Tensor = self.layers(maps[self._deepest])
        return out


class TokenPyramid(nn.Module):
    """The last map of a vision transformer, enlarged 4 and 2 times by transposed convolutions, and as it is.

    Args:
        backbone: the transformer, which is not part of it.

    Attributes:
        channels, strides, stages, deepest, ndim: of the three maps, as a backbone has them.

    Source: Li et al., "Exploring plain vision transformer backbones for object detection" (ViTDet), ECCV 2022: the
    simple feature pyramid, without its coarsest level.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self._map, patch, width = backbone.deepest, backbone.patch_size, backbone.channels[backbone.deepest]
        factors = [factor for factor in _PYRAMID if patch % factor == 0]
        self.stages = tuple(range(1, len(factors) + 1))
        self.deepest, self.ndim = self.stages[-1], backbone.ndim
        self.channels = dict(zip(self.stages, (max(1, width // factor) for factor in factors), strict=True))
        self.strides: dict[int, tuple[int, ...]] = {
            stage: (patch // factor,) * 2 for stage, factor in zip(self.stages, factors, strict=True)
        }
        half, quarter = max(1, width // 2), max(1, width // 4)
        double = [nn.ConvTranspose2d(width, half, 2, 2), timm.layers.LayerNorm2d(half), nn.GELU()]
        levels = {1: nn.Identity(), 2: nn.ConvTranspose2d(width, half, 2, 2)}
        levels[4] = nn.Sequential(*double, nn.ConvTranspose2d(half, quarter, 2, 2))
        self.levels = nn.ModuleList(levels[factor] for factor in factors)

    def forward(self, maps: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """The three maps, finest first, from the maps of the transformer."""
        return {stage: level(maps[self._map]) for stage, level in zip(self.stages, self.levels, strict=True)}
