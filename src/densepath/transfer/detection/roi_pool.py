"""Pools the features of boxes from the feature maps of an image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.ops import roi_align

from densepath.nets.backbones import Backbone

_CANONICAL_SIZE = 224  # pixels: a box of this size is pooled from P4
_CANONICAL_LEVEL = 4
_STAGE_SIZE = 14  # side of the input of stage 5, which halves it


class RoIPool(nn.Module):
    """RoIAlign from the level that fits each box's size, sampled at pixel centers (``aligned=True``).

    torchvision's ``MultiScaleRoIAlign`` samples half a pixel off.

    Args:
        size: side of the pooled square.
        levels: levels to pool from, ascending; level i is the map "i".
        finest: stride of the finest level in pixels; that of level i is twice that of level i - 1. Default: 2**i.

    Source: He et al., "Mask R-CNN", ICCV 2017; levels by Lin et al., "Feature pyramid networks", equation 1.
    """

    def __init__(self, size: int, levels: Sequence[int], finest: float | None = None) -> None:
        super().__init__()
        self.size = size
        self.levels = tuple(levels)
        self._unit = 1.0 if finest is None else finest / 2 ** self.levels[0]  # the stride of level i is 2**i of these

    def forward(self, maps: dict[str, Tensor], boxes: list[Tensor], image_sizes: list[tuple[int, int]]) -> Tensor:
        """Boxes (N_i, 4) x1 y1 x2 y2 in pixels, one tensor per image -> (sum N_i, C, size, size)."""
        image = torch.cat([torch.full_like(b[:, :1], i) for i, b in enumerate(boxes)])
        rois = torch.cat((image, torch.cat(boxes)), dim=1)  # (N, 5)
        width, height = (rois[:, 3:] - rois[:, 1:3]).unbind(1)
        fitting = torch.floor(_CANONICAL_LEVEL + torch.log2((width * height).sqrt() / _CANONICAL_SIZE + 1e-8))
        fitting = fitting.clamp(self.levels[0], self.levels[-1])
        pooled = rois.new_zeros(rois.shape[0], maps[str(self.levels[0])].shape[1], self.size, self.size)
        for level in self.levels:
            here = torch.where(fitting == level)[0]
            # Under autocast the maps have half precision, but roi_align needs the type of the boxes.
            features = maps[str(level)].float()
            found = roi_align(
                features, rois[here], self.size, 1 / (self._unit * 2**level), sampling_ratio=0, aligned=True
            )
            pooled.index_copy_(0, here, found)
        return pooled


class StagePool(nn.Module):
    """Pools f4 in each box and applies the backbone's own stage 5 and a batch norm.

    Stage 5 stays a part of the backbone: this module runs it, and owns only the batch norm.

    Args:
        backbone: a backbone with f4 that can run its last stage separately.

    Detectron2 builds three new bottleneck blocks here, also for a ResNet-18, whose pre-trained stage 5 of two basic
    blocks is then not used. This follows the paper, which "re-targets the 5-th block to be the detection head".

    Source: Yang et al., "ConCL", ECCV 2022, section 5.1; the extra batch norm is that of He et al., "Momentum
    contrast", CVPR 2020, in its Detectron2 configurations.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.pool = RoIPool(_STAGE_SIZE, (4,))
        self.norm = nn.BatchNorm2d(backbone.channels[5])
        self._stage = backbone.last_stage()

    def forward(self, maps: dict[str, Tensor], boxes: list[Tensor], image_sizes: list[tuple[int, int]]) -> Tensor:
        """Boxes as for :class:`RoIPool` -> (sum N_i, C, 7, 7)."""
        inside: Tensor = self.pool(maps, boxes, image_sizes)
        written = torch.onnx.is_in_onnx_export()
        if written:  # onnxruntime (1.31) cannot add the branches of a block if there is no box: there is one more
            inside = torch.cat((inside, inside.new_zeros(1, *inside.shape[1:])))
        for module in (*self._stage, self.norm):
            inside = module(inside)
        return inside[:-1] if written else inside
