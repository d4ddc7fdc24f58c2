"""Where the centers of output positions lie in the input, and samples there without a filter."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor

# Rounding may put the edge of a view this far beyond its source.
EDGE_TOLERANCE = 1e-6


def inside(maps: Tensor, size: Sequence[int]) -> Tensor:
    """(B, *size) bool: whether the center of each output position lies in the input."""
    result = torch.ones(len(maps), *size, dtype=torch.bool, device=maps.device)
    for position in positions(maps, size):
        result &= position.abs() <= 1 + EDGE_TOLERANCE
    return result


def positions(maps: Tensor, size: Sequence[int]) -> list[Tensor]:
    """Where the centers of output positions lie in the input: for each coordinate, x first, (B, *size).

    Not computed with ``F.affine_grid``: under autocast its matrix product has half precision.
    """
    return [reduce(torch.add, terms) for terms in position_terms(maps, size)]


def position_terms(maps: Tensor, size: Sequence[int]) -> list[list[Tensor]]:
    """For each coordinate of :func:`positions` the terms whose sum it is, one for each axis of the output, last first.

    Each varies along its axis and has the size 1 along the others.
    """
    d = maps.shape[1]
    centers = []
    for axis, n in enumerate(size):
        center = (torch.arange(n, device=maps.device, dtype=maps.dtype) * 2 + 1) / n - 1
        centers.append(center.view([-1 if other == axis else 1 for other in range(d)]))
    coordinates = []
    for row in range(d):
        terms = [maps[:, row, column].view(-1, *[1] * d) * centers[d - 1 - column] for column in range(d)]
        terms[0] = maps[:, row, -1].view(-1, *[1] * d) + terms[0]
        coordinates.append(terms)
    return coordinates


def sample_grid(x: Tensor, grid: Tensor, mode: str, padding_mode: str) -> Tensor:
    """``F.grid_sample``, in the wider type of the two: bfloat16 cannot distinguish the positions of a large map."""
    wide = torch.promote_types(x.dtype, grid.dtype)
    return F.grid_sample(x.to(wide), grid.to(wide), mode=mode, padding_mode=padding_mode, align_corners=False)


def average_parts(samples: Tensor, parts: Sequence[int]) -> Tensor:
    """The means over the parts that output positions (B, C, *size) were divided into."""
    if max(parts) == 1:
        return samples
    return (F.avg_pool2d if len(parts) == 2 else F.avg_pool3d)(samples, tuple(parts))
