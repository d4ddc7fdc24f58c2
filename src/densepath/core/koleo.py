"""The KoLeo regularizer: vectors of a batch that keep a distance from each other."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from densepath.core.distributed import gather_with_gradient, rank
from densepath.core.losses import full_precision

_EPS = 1e-8


def koleo(vectors: Tensor) -> Tensor:
    """Minus the mean logarithm of the distance of each unit vector from its nearest other one.

    Args:
        vectors: (B, C); the nearest one is found among those of all processes, which have equally many. There are two
            or more in all.

    Source: Sablayrolles et al., ICLR 2019; Oquab et al., DINOv2, TMLR 2024, where each process has its own neighbors.
    """
    with torch.autocast(vectors.device.type, enabled=False):
        unit = F.normalize(full_precision(vectors), dim=1)
        every = gather_with_gradient(unit)
        with torch.no_grad():
            cosines = unit @ every.T
            own = torch.arange(len(unit), device=unit.device)
            cosines[own, own + rank() * len(unit)] = -torch.inf
            nearest = cosines.argmax(1)
        return -(F.pairwise_distance(unit, every[nearest], eps=_EPS) + _EPS).log().mean()
