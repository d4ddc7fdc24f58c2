"""The feature maps of a detector: a feature pyramid, or one map of stride 16."""

from __future__ import annotations

from collections.abc import Sequence

import timm
import torch
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock

from densepath.core.errors import UserError
from densepath.nets.backbones import TRIAL_SIZE, Backbone


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


@torch.no_grad()
def dilate_last_stage(backbone: Backbone) -> None:
    """Remove the stride of stage 5 and dilate its later convolutions instead: f5 gets the stride 16 of f4.

    Every second position of the new f5, along both axes, equals the old f5. Weights and their names do not change.
    Detectron2 also dilates the convolution that had the stride, so that pre-trained weights give other features, and
    supports only ResNet-50 and deeper.

    Raises:
        UserError: timm cannot dilate the network.
    """
    channels = backbone.in_channels
    try:
        dilated = timm.create_model(backbone.name, features_only=True, output_stride=16, in_chans=channels)
        side = dilated.eval()(torch.zeros(1, channels, TRIAL_SIZE, TRIAL_SIZE))[-1].shape[-1]
        if side != TRIAL_SIZE // 16:
            raise ValueError(f"stride {TRIAL_SIZE // side}")
        dilated.to(next(backbone.parameters())).load_state_dict(backbone.net.state_dict())
    except Exception as error:  # each model family of timm raises its own errors
        raise UserError(f"the last stage of {backbone.name} cannot be dilated; use a ResNet") from error
    backbone.net = dilated.train(backbone.training)
