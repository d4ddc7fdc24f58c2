"""Clustering: of the positions of each image, for a whole batch at once; and of one large set."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

_DISTANCES = 2**24  # maximum number of distances computed at a time


@torch.no_grad()
def spherical_kmeans(points: Tensor, start: Tensor, reseed: Tensor) -> tuple[Tensor, Tensor]:
    """K-means with cosine distance, separately for each image, for all images at once.

    In each of a fixed number of iterations, centroids are normalized, points are assigned to the nearest centroid
    (ties: the smallest id), and centroids become the means of their points. A centroid without points is moved to one
    of the points.

    Args:
        points: (B, N, C) one vector per position; normalized here.
        start: (B, K) int64 indices of the points that initialize the centroids; they may repeat.
        reseed: (iterations, B, K) int64 indices of the points to which centroids without points are moved.

    Returns:
        (B, N) int64 cluster ids of the last assignment, and (B,) its number of empty clusters.

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


@torch.no_grad()
def kmeans(
    points: Tensor,
    order: Tensor,
    count: int,
    iterations: int,
    unit: bool = False,
    after_each: Callable[[], None] = lambda: None,
) -> tuple[Tensor, Tensor]:
    """K-means with Euclidean distance for one large set; for unit vectors optionally with cosine distance.

    Points are expected near the origin, as features are that were normalized (see :func:`nearest`).

    Centroids are initialized with ``count`` of the points. In each of a fixed number of iterations, points are assigned
    to the nearest centroid and centroids become the means of their points. A centroid without points is moved to one
    of the points.

    Args:
        points: (N, D) floats.
        order: (N,) int64, the points in random order: the first ones initialize the centroids, the following ones
            (cyclically) replace centroids without points.
        count: K, the number of clusters, at most N.
        iterations: number of iterations.
        unit: whether centroids are unit vectors.
        after_each: called after each iteration; it may raise to stop.

    Returns:
        (K, D) centroids and (N,) int64, the nearest centroid of each point.
    """
    with torch.autocast(points.device.type, enabled=False):
        centroids = points[order[:count]]
        for iteration in range(iterations):
            labels = nearest(points, centroids)
            members = torch.bincount(labels, minlength=count)
            sums = torch.zeros_like(centroids).index_add_(0, labels, points)
            replacements = (count * (iteration + 1) + torch.arange(count, device=order.device)) % len(order)
            means = F.normalize(sums, dim=1) if unit else sums / members.clamp(min=1).unsqueeze(1)
            centroids = torch.where(members.unsqueeze(1) == 0, points[order[replacements]], means)
            after_each()
        return centroids, nearest(points, centroids)


def nearest(points: Tensor, centroids: Tensor) -> Tensor:
    """The index (N,) int64 of the nearest centroid (K, D) for each point (N, D).

    The distance is Euclidean, from squared lengths and products: far from the origin, compared with the distances
    between the points, these round it off. There, subtract the mean of the centroids from both first.
    """
    # |x - c|^2 without |x|^2, which is constant in c; in parts, as (N, K) may exceed the memory.
    half = centroids.square().sum(1) / 2
    parts = points.split(max(1, _DISTANCES // len(centroids)))
    return torch.cat([torch.addmm(half, part, centroids.T, alpha=-1).argmin(1) for part in parts])
