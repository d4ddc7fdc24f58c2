"""A feature pyramid from the single map of a vision transformer."""

from __future__ import annotations

import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from densepath.nets.backbones import Backbone
from densepath.transfer.detection.windowed_transformer import WindowedTransformer

_PADDED = 32  # pixels: the sides of batches of images are multiples of this


class SimpleFeaturePyramid(nn.Module):
    """The last map of a transformer, scaled by 4, 2, 1 and 1/2: P2-P5, and P6 by pooling.

    Images are padded with zeros at the bottom and on the right to multiples of two patches.

    Args:
        backbone: a vision transformer with patches of 14 or 16 px.
        channels: channels of every level.

    Source: Li et al., "Exploring plain vision transformer backbones for object detection" (ViTDet), ECCV 2022, section
    3, with Detectron2's layers.
    """

    def __init__(self, backbone: Backbone, channels: int) -> None:
        super().__init__()
        self.transformer = WindowedTransformer(backbone)
        width = backbone.channels[4]
        half, quarter = width // 2, width // 4
        enlarged = [_double(width, half), LayerNorm2d(half), nn.GELU(), _double(half, quarter)]
        self.levels = nn.ModuleDict(
            {
                "2": nn.Sequential(*enlarged, *_level(quarter, channels)),
                "3": nn.Sequential(_double(width, half), *_level(half, channels)),
                "4": nn.Sequential(*_level(width, channels)),
                "5": nn.Sequential(nn.MaxPool2d(2), *_level(width, channels)),
            }
        )

    @property
    def backbone(self) -> Backbone:
        """The part that takes pre-trained weights."""
        return self.transformer.backbone

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) -> name: level, finest first: "2" ... "5" and "pool"."""
        multiple = 2 * self.backbone.patch_size  # P5 halves the map
        if multiple != _PADDED:
            height, width = pixels.shape[2:]
            pixels = F.pad(pixels, (0, -width % multiple, 0, -height % multiple))
        features = self.transformer(pixels)
        levels = {name: level(features) for name, level in self.levels.items()}
        return levels | {"pool": F.max_pool2d(levels["5"], kernel_size=1, stride=2)}


def _double(before: int, after: int) -> nn.Module:
    return nn.ConvTranspose2d(before, after, kernel_size=2, stride=2)


def _level(before: int, channels: int) -> list[nn.Module]:
    return [
        nn.Conv2d(before, channels, 1, bias=False),
        LayerNorm2d(channels),
        nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        LayerNorm2d(channels),
    ]
