"""The feature pyramid: the levels P2-P6 of a backbone, their anchors, and what lies under a box in them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import FeaturePyramidNetwork, roi_align
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from densepath.nets.backbones import Backbone

STAGES = (2, 3, 4, 5)
STRIDES = (4, 8, 16, 32, 64)  # pixels, of P2-P6
ANCHOR_SIZES = (32, 64, 128, 256, 512)  # pixels, one for each level
ASPECT_RATIOS = (0.5, 1.0, 2.0)
_CANONICAL_SIZE = 224  # pixels: a box of this size is pooled from P4
_CANONICAL_LEVEL = 4


class FeaturePyramid(nn.Module):
    """A backbone's stages f2-f5 -> the levels P2-P6, all with the same number of channels and batch norm throughout.

    Args:
        backbone: gives f2-f5.
        channels: of every level.

    Source: Lin et al., "Feature pyramid networks for object detection", CVPR 2017.
    """

    def __init__(self, backbone: Backbone, channels: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.fpn = FeaturePyramidNetwork(
            [backbone.channels[stage] for stage in STAGES], channels, LastLevelMaxPool(), nn.BatchNorm2d
        )

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) -> the levels by name, finest first: "2" ... "5" and "pool" (P6)."""
        stages = self.backbone(pixels)
        return self.fpn({str(stage): stages[stage] for stage in STAGES})


class PyramidAnchors(AnchorGenerator):
    """The anchors of all the levels, laid out by the levels' true strides.

    torchvision's own generator divides the image by the grid, which misplaces P6 wherever P5 has an odd size.
    """

    def __init__(self) -> None:
        super().__init__(tuple((size,) for size in ANCHOR_SIZES), (ASPECT_RATIOS,) * len(ANCHOR_SIZES))

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        device = feature_maps[0].device
        self.set_cell_anchors(torch.float32, device)
        strides = [[torch.tensor(stride, device=device)] * 2 for stride in STRIDES]
        anchors = torch.cat(self.grid_anchors([list(level.shape[-2:]) for level in feature_maps], strides))
        return [anchors] * len(image_list.image_sizes)


class PyramidPool(nn.Module):
    """RoIAlign from the level that fits each box's size, sampled at pixel centers (``aligned=True``).

    torchvision's ``MultiScaleRoIAlign`` reads half a pixel beside the box.

    Args:
        size: the side of the square that a box becomes, in cells.

    Source: He et al., "Mask R-CNN", ICCV 2017; levels by Lin et al., equation 1.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, levels: dict[str, Tensor], boxes: list[Tensor], image_sizes: list[tuple[int, int]]) -> Tensor:
        """Boxes (N_i, 4) x1 y1 x2 y2 in pixels, one tensor per image -> (sum N_i, C, size, size)."""
        maps = [levels[str(stage)] for stage in STAGES]
        image = torch.cat([torch.full_like(b[:, :1], i) for i, b in enumerate(boxes)])
        rois = torch.cat((image, torch.cat(boxes)), dim=1)  # (N, 5)
        width, height = (rois[:, 3:] - rois[:, 1:3]).unbind(1)
        level = torch.floor(_CANONICAL_LEVEL + torch.log2((width * height).sqrt() / _CANONICAL_SIZE + 1e-8))
        level = level.clamp(STAGES[0], STAGES[-1])
        pooled = rois.new_zeros(len(rois), maps[0].shape[1], self.size, self.size)
        for stage, stride, features in zip(STAGES, STRIDES, maps, strict=False):
            here = torch.where(level == stage)[0]
            # autocast makes the maps half as precise as the boxes, and roi_align wants one type.
            found = roi_align(features.float(), rois[here], self.size, 1 / stride, sampling_ratio=0, aligned=True)
            pooled.index_copy_(0, here, found)
        return pooled
