"""Affine maps of views, and everything that is carried from one view to another.

A view is pixels plus the affine map that made them. A map is a (B, d, d + 1) tensor that takes coordinates of the view
to coordinates of its source; d is the number of spatial dimensions. Coordinates are normalized: -1 and 1 are the outer
*edges* of the first and the last cell of an axis (``align_corners=False`` in PyTorch's words), and their order is x, y,
z, the reverse of a tensor's axes. So a map does not depend on how finely either side is sampled, and a map made for
pixels holds for feature maps.

Maps are small and best kept on the CPU: then choosing how to resample asks nothing of the device that holds the pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Filter = Literal["area", "bilinear", "bicubic"]

# Sampled this densely, a rotated label map's area shares are right to about 1/64.
_SUBSAMPLES = 8
# Off-axis entries of a quarter turn, which the cosine of pi/2 leaves at 6e-17 to 4e-8.
_AXIS_TOLERANCE = 1e-6
# Rounding may put the edge of a view this far beyond its source.
_EDGE_TOLERANCE = 1e-6


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
    return points @ maps[..., :-1].transpose(-1, -2) + maps[..., -1].unsqueeze(-2)


def compose(outer: Tensor, inner: Tensor) -> Tensor:
    """The maps that first apply ``inner`` and then ``outer``."""
    linear = outer[..., :-1] @ inner
    return torch.cat((linear[..., :-1], linear[..., -1:] + outer[..., -1:]), dim=-1)


def invert(maps: Tensor) -> Tensor:
    """The maps that undo ``maps``. Raises ``torch.linalg.LinAlgError`` where one is singular."""
    linear = torch.linalg.inv(maps[..., :-1])
    return torch.cat((linear, -linear @ maps[..., -1:]), dim=-1)


def between(from_map: Tensor, to_map: Tensor) -> Tensor:
    """The maps that take coordinates of the *to* view to coordinates of the *from* view of the same sources."""
    return compose(invert(from_map), to_map)


def warp(
    x: Tensor, from_map: Tensor, to_map: Tensor, size: Sequence[int], *, kind: Filter = "bilinear"
) -> tuple[Tensor, Tensor]:
    """Carry pixels or features of one view to another.

    Args:
        x: (B, C, *spatial) floats on the *from* view.
        from_map, to_map: (B, d, d + 1) the two views' maps to their common sources.
        size: the cells of the *to* view, in the order of the tensor's axes.
        kind: the resampling filter; it widens with minification, so nothing aliases.

    Returns:
        (B, C, *size) values, zero where invalid, and (B, *size) bool: whether a cell's center lies in the *from* view.
    """
    return resample(x, between(from_map, to_map), size, kind=kind)


def label_shares(labels: Tensor, from_map: Tensor, to_map: Tensor, size: Sequence[int], num_labels: int) -> Tensor:
    """The share of every cell's area that each label covers: exact for crops, flips and quarter turns.

    Args:
        labels: (B, *spatial) integers on the *from* view; those outside 0 .. num_labels - 1 belong to nothing.
        from_map, to_map, size: as in :func:`warp`.

    Returns:
        (B, num_labels, *size) float32.
    """
    ids = torch.arange(num_labels, device=labels.device).view(1, -1, *[1] * (labels.ndim - 1))
    one_hot = (labels.unsqueeze(1) == ids).to(torch.float32)
    return resample(one_hot, between(from_map, to_map), size, kind="area")[0]


def warp_labels(
    labels: Tensor, from_map: Tensor, to_map: Tensor, size: Sequence[int], num_labels: int
) -> tuple[Tensor, Tensor]:
    """Carry a label map to another view: each cell takes the label that covers most of it, ties the smallest.

    Arguments as in :func:`label_shares`.

    Returns:
        (B, *size) int64, -1 where invalid or where no label is; (B, *size) bool, as in :func:`warp`.
    """
    share, label = label_shares(labels, from_map, to_map, size, num_labels).max(dim=1)
    valid = _inside(between(from_map, to_map).to(labels.device), size)
    return torch.where(valid & (share > 0), label, -1), valid


def warp_points(points: Tensor, from_map: Tensor, to_map: Tensor) -> tuple[Tensor, Tensor]:
    """Where points (B, N, d) of one view lie in another, and (B, N) whether they lie inside it."""
    moved = apply(between(to_map, from_map).to(points), points)
    return moved, (moved.abs() <= 1).all(-1)


def resample(
    x: Tensor, maps: Tensor, size: Sequence[int], *, kind: Filter = "bilinear", extent: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Sample grids through maps that take output coordinates to input coordinates.

    Crops, flips and quarter turns are sampled by one small matrix per axis. Other maps take ``grid_sample`` on a finer
    grid that is averaged down; "area" and "bicubic" there mean nearest and bilinear samples.

    Args:
        x: (B, C, *spatial).
        maps: (B, d, d + 1).
        size: the output's spatial size.
        extent: (B, d) sizes, in the order of the tensor's axes, of the inputs that lie in the low corner of a
            larger canvas; the maps' coordinates are those of the inputs.

    Returns:
        (B, C, *size) and (B, *size) bool, as in :func:`warp`.
    """
    x = x if x.is_floating_point() else x.to(torch.float32)
    extent = torch.tensor(x.shape[2:]).expand(len(x), -1) if extent is None else extent.cpu()
    host = maps.detach().cpu()
    groups = _group_by_axes(host)
    if len(groups) == 1:
        out = _resample_group(x, host, size, kind, extent, groups[0][0])
    else:
        out = x.new_empty(len(x), x.shape[1], *size)
        for axes, rows in groups:
            here = rows.to(x.device)
            out[here] = _resample_group(x[here], host[rows], size, kind, extent[rows], axes)
    valid = _inside(maps.to(x.device), size)
    low, high = bounds(host)
    if bool((torch.maximum(-low, high) > 1 + _EDGE_TOLERANCE).any()):
        out = out * valid.unsqueeze(1)
    return out, valid


def axis_weights(low: Tensor, high: Tensor, n_in: int, n_out: int, kind: Filter, extent: Tensor) -> Tensor:
    """The matrices (B, n_out, n_in) that resample one axis.

    Output cell i covers the i-th of ``n_out`` equal parts of the input from ``low`` to ``high``. The filters are box
    ("area": the weights are shares of area and sum to the share that lies inside), triangle ("bilinear") and Keys'
    cubic with a = -0.5 ("bicubic"); the latter two widen by the minification and are normalized at the borders, as
    Pillow and torchvision's antialiased resize do.

    Args:
        low, high: (B,) where the output's axis begins and ends, in normalized input coordinates; low > high flips.
        n_in, n_out: cells of the axes.
        extent: (B,) cells of each input that count; the rest is padding.
    """
    extent = extent.to(low)
    start, stop = (low + 1) / 2 * extent, (high + 1) / 2 * extent
    step = ((stop - start) / n_out).view(-1, 1, 1)
    center = start.view(-1, 1, 1) + step * (torch.arange(n_out, device=low.device, dtype=low.dtype) + 0.5).view(
        1, -1, 1
    )
    cell = torch.arange(n_in, device=low.device, dtype=low.dtype).view(1, 1, -1)
    width = step.abs()
    if kind == "area":
        begin, end = center - width / 2, center + width / 2
        overlap = torch.minimum(end, cell + 1) - torch.maximum(begin, cell)
        weights = overlap.clamp(min=0) / width
    else:
        distance = (cell + 0.5 - center).abs() / width.clamp(min=1)
        weights = (1 - distance).clamp(min=0) if kind == "bilinear" else _keys_cubic(distance)
    weights = weights * (cell < extent.view(-1, 1, 1))
    if kind != "area":
        weights = weights / weights.sum(-1, keepdim=True).clamp(min=torch.finfo(low.dtype).eps)
    return weights


def _keys_cubic(distance: Tensor, a: float = -0.5) -> Tensor:
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((distance - 5) * distance + 8) * distance * a - 4 * a
    return torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))


def _inside(maps: Tensor, size: Sequence[int]) -> Tensor:
    """(B, *size): whether the center of each output cell lies in the input."""
    inside = torch.ones(len(maps), *size, dtype=torch.bool, device=maps.device)
    d = maps.shape[1]
    centers = [
        ((torch.arange(n, device=maps.device, dtype=maps.dtype) * 2 + 1) / n - 1).view(
            [-1 if a == axis else 1 for a in range(d)]
        )
        for axis, n in enumerate(size)
    ]
    for row in range(d):
        position = maps[:, row, -1].view(-1, *[1] * d)
        for column in range(d):
            position = position + maps[:, row, column].view(-1, *[1] * d) * centers[d - 1 - column]
        inside &= position.abs() <= 1 + _EDGE_TOLERANCE
    return inside


def _group_by_axes(maps: Tensor) -> list[tuple[tuple[int, ...] | None, Tensor]]:
    """Rows of the batch by the axes that their maps exchange; None for maps that mix axes."""
    linear = maps[..., :-1].abs()
    along = linear > _AXIS_TOLERANCE * linear.amax(dim=(-1, -2), keepdim=True)
    aligned = (along.sum(-1) == 1).all(-1) & (along.sum(-2) == 1).all(-1)
    groups: list[tuple[tuple[int, ...] | None, Tensor]] = []
    columns = along.to(torch.int64).argmax(-1)
    if bool(aligned.any()):
        for axes in torch.unique(columns[aligned], dim=0):
            groups.append((tuple(axes.tolist()), (aligned & (columns == axes).all(-1)).nonzero().squeeze(-1)))
    if not bool(aligned.all()):
        groups.append((None, (~aligned).nonzero().squeeze(-1)))
    return groups


def _resample_group(
    x: Tensor, maps: Tensor, size: Sequence[int], kind: Filter, extent: Tensor, axes: tuple[int, ...] | None
) -> Tensor:
    if axes is None:
        return _resample_grid(x, maps, size, kind, extent)
    return _resample_axes(x, maps, size, kind, extent, axes)


def _resample_axes(
    x: Tensor, maps: Tensor, size: Sequence[int], kind: Filter, extent: Tensor, axes: tuple[int, ...]
) -> Tensor:
    """One matrix per axis. ``axes[i]``: the output coordinate that input coordinate i (x first) follows."""
    d = len(axes)
    maps, extent = maps.to(x.device), extent.to(x.device)
    # Channels last, as decoded images lie in memory: the first product then needs no copy.
    cells = x.movedim(1, -1)
    order = [0] * d
    for row in reversed(range(d)):
        axis, out_axis = d - 1 - row, d - 1 - axes[row]
        scale, shift = maps[:, row, axes[row]], maps[:, row, -1]
        weights = axis_weights(shift - scale, shift + scale, x.shape[2 + axis], size[out_axis], kind, extent[:, axis])
        cells = _along_axis(cells, weights.to(cells.dtype), 1 + axis)
        order[out_axis] = axis
    return cells.permute(0, -1, *[1 + axis for axis in order])


def _along_axis(x: Tensor, weights: Tensor, axis: int) -> Tensor:
    """Multiply one axis of x (B, ..., C) by weights (B, n_out, n_in)."""
    moved = x.movedim(axis, 1)
    return torch.bmm(weights, moved.flatten(2)).unflatten(2, moved.shape[2:]).movedim(1, axis)


def _resample_grid(x: Tensor, maps: Tensor, size: Sequence[int], kind: Filter, extent: Tensor) -> Tensor:
    """Maps that turn by any angle: samples on a finer grid, averaged."""
    d = maps.shape[1]
    cells = extent.flip(-1).to(maps)  # x first, like the maps
    steps = (maps[..., :-1] * cells.unsqueeze(-1)).norm(dim=1) / torch.tensor(tuple(size)).flip(0)
    finer = [max(1, math.ceil(s)) for s in steps.amax(0).flip(0).tolist()]
    if kind == "area":
        finer = [max(_SUBSAMPLES, 2 * f) for f in finer]
    fine_size = [n * f for n, f in zip(size, finer, strict=True)]
    canvas = torch.tensor(x.shape[2:]).flip(0).to(maps)
    share = (cells / canvas).unsqueeze(-1)
    onto_canvas = maps * share
    onto_canvas[..., -1:] += share - 1
    grid = F.affine_grid(onto_canvas.to(x.device), [len(x), 1, *fine_size], align_corners=False)
    # Never sample the padding beyond an input: stay half a cell inside.
    edge = ((2 * cells - 1) / canvas - 1).view(len(x), *[1] * d, d).to(x.device)
    grid = torch.minimum(grid, edge)
    mode = "nearest" if kind == "area" else "bilinear"
    samples = F.grid_sample(x, grid.to(x.dtype), mode=mode, padding_mode="border", align_corners=False)
    if max(finer) == 1:
        return samples
    return (F.avg_pool2d if d == 2 else F.avg_pool3d)(samples, finer)
