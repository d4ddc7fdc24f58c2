"""Regions of a view and their pooled feature vectors."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from densepath.core.affine import TIE


class Regions:
    """Regions of each view of a batch, hard or soft.

    Args:
        masks: (B, K, *spatial) how much of each position belongs to each region: bool, or floats from 0 to 1. Regions
            may be empty.
    """

    def __init__(self, masks: Tensor) -> None:
        self.masks = masks.flatten(2)  # (B, K, positions)
        self.area = self.masks.sum(-1)  # (B, K), in positions

    @classmethod
    def of_labels(cls, labels: Tensor, num_regions: int) -> Regions:
        """Hard regions of an integer label map on each view.

        Args:
            labels: (B, *spatial) integers; ids outside 0 .. num_regions - 1 belong to no region.
            num_regions: K, the same for every image.
        """
        ids = torch.arange(num_regions, device=labels.device)
        return cls(labels.unsqueeze(1) == ids.view(1, -1, *[1] * (labels.ndim - 1)))

    @classmethod
    def of_points(
        cls, points: Tensor, grid: Sequence[int], classes: Tensor | None = None, num_classes: int = 1
    ) -> Regions:
        """Positions of each view that hold points of each class, and as the last region those that hold none.

        Without classes these are the two regions of DiRL's cell prior. A position that holds points of several classes
        belongs to the most frequent one; of equally frequent ones to the first.

        Args:
            points, grid: as for :func:`point_counts`.
            classes: (B, N) the class of each point, from 0; not read where the point is padding. None for one class.
            num_classes: the number of classes, one less than that of the regions.
        """
        if classes is None:
            counts = point_counts(points, grid).unsqueeze(1)
        else:
            own = [torch.where((classes == k).unsqueeze(-1), points, torch.nan) for k in range(num_classes)]
            counts = torch.stack([point_counts(each, grid) for each in own], dim=1)  # (B, K, *grid)
        handicap = torch.arange(counts.shape[1], device=counts.device).view(-1, *[1] * len(grid))
        main = (counts * counts.shape[1] - handicap).argmax(dim=1)  # no ties: a GPU would break them differently
        return cls.of_labels(torch.where(counts.amax(dim=1) > 0, main, counts.shape[1]), counts.shape[1] + 1)

    def present(self) -> Tensor:
        """(B, K) bool: which regions have any area."""
        return self.area > TIE

    def pool(self, features: Tensor) -> Tensor:
        """Masked average pooling, one matrix product for the batch (ConCL, section 3.2: MAP).

        Args:
            features: (B, C, *spatial) on the positions of the masks.

        Returns:
            (B, K, C); zeros where a region is empty.
        """
        if _in_half(features):  # sums and areas may exceed its range
            with torch.autocast(features.device.type, enabled=False):
                return self.pool(features.float()).to(torch.float16)
        vectors = features.flatten(2).transpose(1, 2)  # (B, positions, C)
        sums = torch.bmm(self.masks.to(vectors.dtype), vectors)
        return sums / torch.where(self.present(), self.area, 1).unsqueeze(-1).to(sums.dtype)


def _in_half(x: Tensor) -> bool:
    """Whether matrix products of a tensor are in float16, also by autocast."""
    device = x.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device) == torch.float16
    return x.dtype == torch.float16


def point_counts(points: Tensor, grid: Sequence[int]) -> Tensor:
    """How many points lie in each position of a grid over each view.

    Args:
        points: (B, N, d) floats in the view's normalized coordinates, x first; rows of NaN are padding, and points
            outside the view are not counted.
        grid: positions along each axis, in the order of the tensor's axes.

    Returns:
        (B, *grid) int64. The same on every device and in every run: integer sums do not depend on the order.
    """
    inside = (points.abs() <= 1).all(-1)  # False for NaN
    flat = torch.zeros(points.shape[:2], dtype=torch.int64, device=points.device)
    for axis, n in enumerate(grid):
        along = ((points[..., len(grid) - 1 - axis] + 1) / 2 * n).nan_to_num(0.0).floor().clamp(0, n - 1)
        flat = flat * n + along.to(torch.int64)
    count = math.prod(grid)
    flat = torch.where(inside, flat, count)  # the others are counted in an extra position
    rows = torch.arange(len(points), device=points.device).unsqueeze(1) * (count + 1)
    counts = torch.zeros(len(points) * (count + 1), dtype=torch.int64, device=points.device)
    counts.index_put_(((flat + rows).flatten(),), torch.ones_like(flat).flatten(), accumulate=True)
    return counts.view(len(points), -1)[:, :count].reshape(-1, *grid)


def global_pool(features: Tensor) -> Tensor:
    """The mean over all positions: (B, C, *spatial) -> (B, C), in any number of dimensions."""
    return features.mean(tuple(range(2, features.ndim)))
