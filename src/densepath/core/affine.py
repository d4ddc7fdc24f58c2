"""Affine maps of views, and the operations that carry data from one view to another.

A view is pixels plus the affine map that made them. A map is a (B, d, d + 1) tensor that takes coordinates of the view
to coordinates of its source; d is the number of spatial dimensions. Coordinates are normalized: -1 and 1 are the outer
*edges* of the first and the last pixel of an axis (``align_corners=False`` in PyTorch's words), and their order is x,
y, z, the reverse of a tensor's axes. So a map does not depend on how finely either side is sampled, and a map made for
pixels holds for feature maps.

Maps are small and best kept on the CPU: then choosing how to resample needs no synchronization with the device that
holds the pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from densepath.core.filters import Mode
from densepath.core.grids import inside
from densepath.core.resampling import resample, sample

# Shares of area closer than this are a tie: rounding must not decide it.
TIE = 4e-6


def identity(batch: int, d: int = 2) -> Tensor:
    """The maps (B, d, d + 1) of views that show their whole source as it is."""
    return torch.eye(d, d + 1).repeat(batch, 1, 1)


def from_box(low: Tensor, high: Tensor) -> Tensor:
    """The maps (B, d, d + 1) of axis-aligned crops.

    Args:
        low, high: (B, d) opposite corners of each crop in the source's normalized coordinates.
    """
    return torch.cat((torch.diag_embed((high - low) / 2), ((high + low) / 2).unsqueeze(-1)), dim=-1)


def bounds(maps: Tensor) -> tuple[Tensor, Tensor]:
    """The corners (low, high), each (B, d), of the smallest axis-aligned box of the source that covers the view."""
    reach = maps[..., :-1].abs().sum(-1)
    return maps[..., -1] - reach, maps[..., -1] + reach


def union(first: Tensor, second: Tensor) -> Tensor:
    """The maps of the smallest axis-aligned views that cover two views (ConCL's reference view, section 3.2)."""
    (low_a, high_a), (low_b, high_b) = bounds(first), bounds(second)
    return from_box(torch.minimum(low_a, low_b), torch.maximum(high_a, high_b))


def apply(maps: Tensor, points: Tensor) -> Tensor:
    """Take points (B, N, d) through the maps (B, d, d + 1)."""
    return _product(points, maps[..., :-1].transpose(-1, -2)) + maps[..., -1].unsqueeze(-2)


def compose(outer: Tensor, inner: Tensor) -> Tensor:
    """The maps that first apply ``inner`` and then ``outer``."""
    linear = _product(outer[..., :-1], inner)
    return torch.cat((linear[..., :-1], linear[..., -1:] + outer[..., -1:]), dim=-1)


def invert(maps: Tensor) -> Tensor:
    """The maps that undo ``maps``. Raises ``torch.linalg.LinAlgError`` where one is singular."""
    linear = torch.linalg.inv(maps[..., :-1])
    return torch.cat((linear, _product(-linear, maps[..., -1:])), dim=-1)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """The product of small matrices, at full precision: autocast would halve that of ``a @ b``."""
    return (a.unsqueeze(-1) * b.unsqueeze(-3)).sum(-2)


def between(from_map: Tensor, to_map: Tensor) -> Tensor:
    """The maps that take coordinates of the *to* view to coordinates of the *from* view of the same sources."""
    return compose(invert(from_map), to_map)


def warp(
    x: Tensor, from_map: Tensor, to_map: Tensor, size: Sequence[int], *, mode: Mode = "bilinear"
) -> tuple[Tensor, Tensor]:
    """Carry pixels or features of one view to another.

    Args:
        x: (B, C, *spatial) floats on the *from* view.
        from_map, to_map: (B, d, d + 1) the two views' maps to their common sources.
        size: the positions of the *to* view, in the order of the tensor's axes.
        mode: the resampling filter; it widens with minification, so nothing aliases.

    Returns:
        (B, C, *size) values, zero where invalid, and (B, *size) bool: whether a position's center lies in *from*.
    """
    return resample(x, between(from_map, to_map), size, mode=mode)


def label_shares(labels: Tensor, from_map: Tensor, to_map: Tensor, size: Sequence[int], num_labels: int) -> Tensor:
    """The share of every position's area that each label covers: exact for crops, flips and quarter turns.

    Args:
        labels: (B, *spatial) integers on the *from* view; values outside 0 .. num_labels - 1 are ignored.
        from_map, to_map, size: as in :func:`warp`.

    Returns:
        (B, num_labels, *size) float32.
    """
    ids = torch.arange(num_labels, device=labels.device).view(1, -1, *[1] * (labels.ndim - 1))
    one_hot = (labels.unsqueeze(1) == ids).to(torch.float32)
    return sample(one_hot, between(from_map, to_map), size, mode="area")


def warp_labels(
    labels: Tensor, from_map: Tensor, to_map: Tensor, size: Sequence[int], num_labels: int
) -> tuple[Tensor, Tensor]:
    """Carry a label map to another view: each position takes the label that covers most of it, ties the smallest.

    Arguments as in :func:`label_shares`.

    Returns:
        (B, *size) int64, -1 where invalid or where no label is; (B, *size) bool, as in :func:`warp`.
    """
    shares = label_shares(labels, from_map, to_map, size, num_labels)
    most = shares.amax(dim=1, keepdim=True)
    label = (shares >= most - TIE).to(torch.uint8).argmax(dim=1)
    valid = inside(between(from_map, to_map).to(labels.device, non_blocking=True), size)
    return torch.where(valid & (most.squeeze(1) > TIE), label, -1), valid


def warp_points(points: Tensor, from_map: Tensor, to_map: Tensor) -> tuple[Tensor, Tensor]:
    """Where points (B, N, d) of one view lie in another, and (B, N) whether they lie inside it.

    Padding, points of NaN, stays NaN and lies outside.
    """
    moved = apply(between(to_map, from_map).to(points, non_blocking=True), points)
    return moved, (moved.abs() <= 1).all(-1)
