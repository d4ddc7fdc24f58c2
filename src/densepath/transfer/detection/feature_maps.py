"""The feature maps of a detector: a feature pyramid, or one map of stride 16."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock

from densepath.nets.backbones import Backbone
from densepath.nets.backbones.dilation import dilate_last_stage


class FeaturePyramid(nn.Module):
    """A feature pyramid with batch norms: levels with the same number of channels, finest first.

    Args:
        backbone: computes the stages.
        channels: channels of every level.
        stages: stages of the backbone that the pyramid uses, ascending.
        extra: computes the levels beyond P5.

    Source: Lin et al., "Feature pyramid networks for object detection", CVPR 2017.
    """

    def __init__(self, backbone: Backbone, channels: int, stages: Sequence[int], extra: ExtraFPNBlock) -> None:
        super().__init__()
        self.backbone = backbone
        self.stages = tuple(stages)
        self.fpn = FeaturePyramidNetwork(
            [backbone.channels[stage] for stage in stages], channels, extra, nn.BatchNorm2d
        )

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) -> name: level, finest first: "2" ... "5", or some of them, and the extra levels."""
        maps = self.backbone(pixels)
        levels: dict[str, Tensor] = self.fpn({str(stage): maps[stage] for stage in self.stages})
        return levels


class FourthStage(nn.Module):
    """A backbone's f4 (C4); its stage 5 is used by the heads.

    Args:
        backbone: computes f4.

    Source: Ren et al., "Faster R-CNN", as He et al. build it on a ResNet (CVPR 2016, appendix A).
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) -> f4 as the level "4"."""
        return {"4": self.backbone(pixels, last=4)[4]}


class DilatedStage(nn.Module):
    """A backbone's f5 at the resolution of f4 (DC5).

    Args:
        backbone: modified in place, see :func:`dilate_last_stage`.

    Source: Dai et al., "R-FCN", NeurIPS 2016, "À trous and stride".
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        dilate_last_stage(backbone)
        self.backbone = backbone

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) -> f5 as the level "4", which has its stride."""
        return {"4": self.backbone(pixels)[5]}
