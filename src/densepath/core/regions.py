"""Regions of a view and the vectors that stand for them."""

from __future__ import annotations

import torch
from torch import Tensor


class Regions:
    """An integer label map on each view of a batch.

    Args:
        labels: (B, *spatial) integers; ids outside 0 .. num_regions - 1 belong to no region.
        num_regions: K, the same for every image; regions may be empty.
    """

    def __init__(self, labels: Tensor, num_regions: int) -> None:
        ids = torch.arange(num_regions, device=labels.device)
        self.masks = labels.flatten(1).unsqueeze(1) == ids.view(1, -1, 1)  # (B, K, cells)
        self.area = self.masks.sum(-1)  # (B, K)

    def present(self) -> Tensor:
        """(B, K) bool: which regions have at least one cell."""
        return self.area > 0

    def pool(self, features: Tensor) -> Tensor:
        """Masked average pooling, one matrix product for the batch (ConCL, section 3.2: MAP).

        Args:
            features: (B, C, *spatial) on the cells of the labels.

        Returns:
            (B, K, C); zeros where a region is empty.
        """
        cells = features.flatten(2).transpose(1, 2)  # (B, cells, C)
        sums = torch.bmm(self.masks.to(cells.dtype), cells)
        return sums / self.area.clamp(min=1).unsqueeze(-1).to(sums.dtype)
