"""Resampling filters along one axis: input positions and weights of each output position, and weighted sums."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Mode = Literal["area", "bilinear", "bicubic"]

# How far each filter reaches from its center, in input pixels without minification.
_REACH = {"area": 0.5, "bilinear": 1.0, "bicubic": 2.0}


def filter_reach(mode: Mode) -> float:
    """How far a filter reaches from its center, in pixels of the coarser side."""
    return _REACH[mode]


def tap_count(step: float, mode: Mode) -> int:
    """The number T of input positions whose weights for an output position may not be 0.

    Args:
        step: input positions in a step of the output; negative where it flips.
        mode: the filter.
    """
    return math.ceil(2 * _REACH[mode] * max(1.0, abs(step))) + 1


def weighted_rows(x: Tensor, positions: Tensor, weights: Tensor, axis: int, rows: Tensor | None = None) -> Tensor:
    """Replace the positions of one axis by weighted sums of some of them.

    Args:
        x: (B, ..., C) floats; fastest where ``axis`` is 1 and x is contiguous.
        positions: (N, n_out, T) int64, the positions of the axis in each sum.
        weights: (N, n_out, T).
        axis: which axis of x.
        rows: (N,) int64, the input of each sum; None if N = B and each has its own.

    Returns:
        (N, ..., C).
    """
    # A copy is many times faster if what is contiguous in it is longer than the channels.
    swapped = axis == 2 and x.ndim == 4
    moved = x.movedim(axis, 1)
    moved = moved.transpose(2, 3) if swapped else moved
    count, n_in = moved.shape[:2]
    inputs = torch.arange(count, device=x.device) if rows is None else rows.to(x.device, non_blocking=True)
    first = inputs.view(-1, 1, 1) * n_in
    sums = F.embedding_bag(
        (positions + first).flatten(0, 1),
        moved.reshape(count * n_in, -1).contiguous(),  # else one image of one channel is summed in another way
        mode="sum",
        per_sample_weights=weights.to(x.dtype).flatten(0, 1),
    )
    sums = sums.view(len(positions), positions.shape[1], *moved.shape[2:])
    return (sums.transpose(2, 3) if swapped else sums).movedim(1, axis)


def axis_taps(
    low: Tensor, high: Tensor, n_out: int, mode: Mode, extent: Tensor, device: torch.device
) -> tuple[Tensor, Tensor]:
    """The input positions and weights of each output position of an axis.

    Output position i covers the i-th of ``n_out`` equal parts of the input from ``low`` to ``high``.

    Args:
        low, high: (B,) where the output starts and ends, in normalized input coordinates; low > high flips.
        extent: (B,) positions of the input.

    Returns:
        Positions and weights, each (B, n_out, T), on ``device``.
    """
    extent = extent.to(low)
    step = (high - low) / 2 * extent / n_out
    # On the CPU, where the maps lie: the number of taps must be known here.
    taps = tap_count(float(step.abs().max()), mode)
    start, step, extent = (v.to(device, non_blocking=True) for v in ((low + 1) / 2 * extent, step, extent))
    middle = torch.arange(n_out, device=device, dtype=low.dtype) + 0.5
    center = torch.addcmul(start.view(-1, 1), step.view(-1, 1), middle.view(1, -1)).unsqueeze(-1)
    width = step.abs().view(-1, 1, 1)
    reach = _REACH[mode] * (width if mode == "area" else width.clamp(min=1))
    offset = 0.0 if mode == "area" else 0.5
    positions = torch.floor(center - reach + offset) + torch.arange(taps, device=device, dtype=low.dtype)
    if mode == "area":
        overlap = torch.minimum(center + width / 2, positions + 1) - torch.maximum(center - width / 2, positions)
        weights = overlap.clamp(min=0) / width
    else:
        distance = (positions + 0.5 - center).abs() / width.clamp(min=1)
        weights = (1 - distance).clamp(min=0) if mode == "bilinear" else _keys_cubic(distance)
    last = extent.view(-1, 1, 1) - 1
    weights = weights * ((positions >= 0) & (positions <= last))
    if mode != "area":
        weights = weights / weights.sum(-1, keepdim=True).clamp(min=torch.finfo(low.dtype).eps)
    return torch.minimum(positions.clamp(min=0), last).long(), weights


@lru_cache(maxsize=1024)
def whole_axis_taps(n_in: int, n_out: int, mode: Mode) -> tuple[Tensor, Tensor]:
    """The positions and weights (n_out, T) that resize a whole axis, on the CPU."""
    low, high = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    taps, weights = axis_taps(low, high, n_out, mode, torch.tensor([n_in]), torch.device("cpu"))
    return taps[0], weights[0]


def _keys_cubic(distance: Tensor, a: float = -0.5) -> Tensor:
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((distance - 5) * distance + 8) * distance * a - 4 * a
    return torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))
