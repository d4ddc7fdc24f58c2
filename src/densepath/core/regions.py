"""Regions of a view and the vectors that stand for them."""

from __future__ import annotations

import torch
from torch import Tensor

from densepath.core.affine import TIE


class Regions:
    """Regions of each view of a batch, sharp or soft.

    Args:
        masks: (B, K, *spatial) how much of each cell belongs to each region: bool, or floats from 0 to 1. Regions may
            be empty.
    """

    def __init__(self, masks: Tensor) -> None:
        self.masks = masks.flatten(2)  # (B, K, cells)
        self.area = self.masks.sum(-1)  # (B, K), in cells

    @classmethod
    def of_labels(cls, labels: Tensor, num_regions: int) -> Regions:
        """Sharp regions of an integer label map on each view.

        Args:
            labels: (B, *spatial) integers; ids outside 0 .. num_regions - 1 belong to no region.
            num_regions: K, the same for every image.
        """
        ids = torch.arange(num_regions, device=labels.device)
        return cls(labels.unsqueeze(1) == ids.view(1, -1, *[1] * (labels.ndim - 1)))

    def present(self) -> Tensor:
        """(B, K) bool: which regions have any area."""
        return self.area > TIE

    def pool(self, features: Tensor) -> Tensor:
        """Masked average pooling, one matrix product for the batch (ConCL, section 3.2: MAP).

        Args:
            features: (B, C, *spatial) on the cells of the masks.

        Returns:
            (B, K, C); zeros where a region is empty.
        """
        cells = features.flatten(2).transpose(1, 2)  # (B, cells, C)
        sums = torch.bmm(self.masks.to(cells.dtype), cells)
        return sums / torch.where(self.present(), self.area, 1).unsqueeze(-1).to(sums.dtype)


def global_pool(features: Tensor) -> Tensor:
    """The mean over all positions: (B, C, *spatial) -> (B, C), in any number of dimensions."""
    return features.mean(tuple(range(2, features.ndim)))
