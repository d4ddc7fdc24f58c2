"""Clustering of cells, for a whole batch at once."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


@torch.no_grad()
def spherical_kmeans(points: Tensor, start: Tensor, reseed: Tensor) -> tuple[Tensor, Tensor]:
    """K-means by cosine distance, for each image on its own, all images at once.

    A fixed number of iterations; in each, centroids are normalized, points go to the nearest (ties: the smallest id),
    and centroids become the means of their points. A centroid without points is put on one of the points.

    Args:
        points: (B, N, C) one vector per cell; normalized here.
        start: (B, K) int64, the points where the centroids start; they may repeat.
        reseed: (iterations, B, K) int64, the points where a centroid that lost its points goes on.

    Returns:
        (B, N) int64 cluster ids of the last assignment, and (B,) the number of clusters that are empty in it.

    Source: ConCL (ECCV 2022), section 4.4, and its released code: 10 iterations.
    """
    with torch.autocast(points.device.type, enabled=False):
        points = F.normalize(points.float(), dim=-1)
        channels = points.shape[-1]

        def pick(positions: Tensor) -> Tensor:
            return points.gather(1, positions.unsqueeze(-1).expand(-1, -1, channels))

        ids = torch.arange(start.shape[1], device=points.device)
        centroids = pick(start)  # (B, K, C)
        for positions in reseed:
            labels = torch.bmm(points, centroids.transpose(1, 2)).argmax(-1)  # (B, N)
            members = (labels.unsqueeze(1) == ids.view(1, -1, 1)).to(points.dtype)  # (B, K, N)
            empty = members.sum(-1) == 0
            means = F.normalize(torch.bmm(members, points), dim=-1)
            centroids = torch.where(empty.unsqueeze(-1), pick(positions), means)
    return labels, empty.sum(-1)
