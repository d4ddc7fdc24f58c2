"""Anchors: the initial boxes of a detector at every position of a feature map."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

ASPECT_RATIOS = (0.5, 1.0, 2.0)  # height by width


class Anchors(AnchorGenerator):
    """Anchors of given sizes, in three aspect ratios, at the true strides of the maps.

    As in Detectron2 the anchors of the first position are centered on the corner of the image, and sizes are exact.
    torchvision's generator divides the image size by the grid size, which misplaces P6 if P5 has an odd size, and
    rounds to whole pixels.

    Args:
        sizes: for each map the sizes of its anchors: the square root of their area, in pixels.
        strides: strides of the maps, in pixels.
    """

    def __init__(self, sizes: Sequence[Sequence[float]], strides: Sequence[float]) -> None:
        super().__init__(tuple(map(tuple, sizes)), (ASPECT_RATIOS,) * len(sizes))
        self.strides = tuple(strides)

    def generate_anchors(
        self,
        scales: Sequence[float],
        aspect_ratios: Sequence[float],
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """The anchors of one position, (A, 4) x1 y1 x2 y2 around its origin."""
        size = torch.tensor(scales, dtype=dtype, device=device)
        root = torch.tensor(aspect_ratios, dtype=dtype, device=device).sqrt()[:, None]
        half = torch.stack((size / root, size * root), dim=-1).view(-1, 2) / 2  # of width and height
        return torch.cat((-half, half), dim=1)

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """For each image all anchors (N, 4) x1 y1 x2 y2 in pixels, by map and row."""
        device = feature_maps[0].device
        self.set_cell_anchors(torch.float32, device)
        strides = [[torch.tensor(stride, device=device)] * 2 for stride in self.strides]
        anchors = torch.cat(self.grid_anchors([list(level.shape[-2:]) for level in feature_maps], strides))
        return [anchors] * len(image_list.image_sizes)
