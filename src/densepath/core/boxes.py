"""Boxes of the pixels that maps need, and maps to them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from densepath.core.filters import Mode, filter_reach


def needed_boxes(maps: Tensor, size: Sequence[int], mode: Mode, extent: Tensor) -> Tensor:
    """(N, 2, d) int64: the low corner (included) and the high one (excluded) of the voxels that samples use.

    Args:
        maps: (N, d, d + 1) from output to input coordinates, on the CPU.
        size: the output's spatial size.
        mode: the filter.
        extent: (N, d) the inputs' sizes, in the order of the tensor's axes.
    """
    maps = maps.double()
    across = extent.flip(-1).double()
    half = maps[..., :-1].abs().sum(-1)
    low, high = ((maps[..., -1] + half * side + 1) / 2 * across for side in (-1, 1))
    # The coarsest axis of the output bounds how far its filter reaches, for any rotation.
    step = ((high - low) / min(size)).clamp(min=1)
    reach = filter_reach(mode) * step + 1
    box = torch.stack(((low - reach).floor(), (high + reach).ceil()), dim=1).long().flip(-1)
    return torch.minimum(box.clamp(min=0), extent.unsqueeze(1))


def onto_boxes(maps: Tensor, sizes: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Maps to images as maps to boxes of them: (N, d, d + 1) float64, where rounding does not matter.

    Args:
        maps: (N, d, d + 1).
        sizes, low, high: (N, d) the images' sizes and the boxes' corners in pixels, in the order of the tensor's axes.
    """
    sizes, low, high = (corner.flip(-1).double() for corner in (sizes, low, high))
    sides = (high - low).clamp(min=1)
    made = maps.double() * (sizes / sides).unsqueeze(-1)
    made[..., -1] += (sizes - 2 * low) / sides - 1
    return made
