"""Sampling grids of cells through affine maps.

Every output cell of a crop, a flip or a quarter turn is a weighted sum of a few input cells along each axis, so one
axis after the other is a sum of a few rows of a table. Other maps sample a finer grid and average.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Filter = Literal["area", "bilinear", "bicubic"]
Way = tuple[int, ...] | int  # see group_rows

# How far each filter reaches from its center, in input cells where nothing is minified.
_REACH = {"area": 0.5, "bilinear": 1.0, "bicubic": 2.0}
# Sampled this densely, a rotated label map's area shares are right to about 1/64.
_SUBSAMPLES = 8
# Rounding may take a map without minification for one with a little.
_STEP_TOLERANCE = 1e-3
# Off-axis entries of a quarter turn, which the cosine of pi/2 leaves at 6e-17 to 4e-8.
_AXIS_TOLERANCE = 1e-6
# Rounding may put the edge of a view this far beyond its source.
_EDGE_TOLERANCE = 1e-6


def resample(x: Tensor, maps: Tensor, size: Sequence[int], *, kind: Filter = "bilinear") -> tuple[Tensor, Tensor]:
    """What :func:`sample` gives, and (B, *size) bool: whether a cell's center lies in the input."""
    return sample(x, maps, size, kind=kind), inside(maps.to(x.device, non_blocking=True), size)


def filter_reach(kind: Filter) -> float:
    """How far a filter reaches from its center, in pixels of the coarser side."""
    return _REACH[kind]


def sample(
    x: Tensor,
    maps: Tensor,
    size: Sequence[int],
    *,
    kind: Filter = "bilinear",
    extent: Tensor | None = None,
    rows: Tensor | None = None,
) -> Tensor:
    """Sample inputs through maps that take output coordinates to input coordinates (see ``core.affine``).

    The filters are a box ("area": weights are shares of area), a triangle ("bilinear") and Keys' cubic with a = -0.5
    ("bicubic"); they widen by the minification, so nothing aliases, and the latter two are normalized at the borders,
    as Pillow's and torchvision's antialiased resize do. For maps that turn by other angles than quarters, "area"
    means nearest and "bicubic" bilinear samples.

    Args:
        x: (B, C, *spatial).
        maps: (N, d, d + 1), best on the CPU.
        size: the output's spatial size.
        rows: (N,) int64, the input that each map samples, on the CPU; None where N = B and each samples its own.
        extent: (N, d) sizes, in the order of the tensor's axes, of the inputs that lie in the low corner of a
            larger canvas; the maps' coordinates are those of the inputs.

    Returns:
        (N, C, *size) floats, zero where a cell's center lies outside the input.
    """
    x = x if x.is_floating_point() else x.to(torch.float32)
    extent = torch.tensor(x.shape[2:]).expand(len(maps), -1) if extent is None else extent.cpu()
    host = maps.detach().cpu()
    groups = group_rows(host, size, kind, extent)
    if len(groups) == 1:
        out = _resample_group(x, host, size, kind, extent, groups[0][0], rows).to(x.dtype)
    else:
        out = x.new_empty(len(maps), x.shape[1], *size)
        for way, group in groups:
            here = group.to(x.device, non_blocking=True)
            inputs = group if rows is None else rows[group]
            out[here] = _resample_group(x, host[group], size, kind, extent[group], way, inputs).to(x.dtype)
    if bool((host[..., :-1].abs().sum(-1) + host[..., -1].abs() > 1 + _EDGE_TOLERANCE).any()):
        out = out * inside(maps.to(x.device, non_blocking=True), size).unsqueeze(1)
    return out


def sample_nearest(x: Tensor, maps: Tensor, size: Sequence[int]) -> Tensor:
    """What the input holds where the centers of output cells lie, with no filter: for masks.

    Args:
        x: (B, C, *spatial) floats.
        maps: (B, d, d + 1), as for :func:`sample`.
        size: the output's spatial size.

    Returns:
        (B, C, *size), zero where a cell's center lies outside the input.
    """
    grid = torch.stack(_positions(maps.to(x.device, non_blocking=True), size), dim=-1)
    return _sample_grid(x, grid, mode="nearest", padding_mode="zeros").to(x.dtype)


def inside(maps: Tensor, size: Sequence[int]) -> Tensor:
    """(B, *size) bool: whether the center of each output cell lies in the input."""
    result = torch.ones(len(maps), *size, dtype=torch.bool, device=maps.device)
    for position in _positions(maps, size):
        result &= position.abs() <= 1 + _EDGE_TOLERANCE
    return result


def _positions(maps: Tensor, size: Sequence[int]) -> list[Tensor]:
    """Where the centers of output cells lie in the input: for each coordinate, x first, (B, *size).

    Not by ``F.affine_grid``, whose matrix product autocast makes half as precise.
    """
    d = maps.shape[1]
    centers = []
    for axis, n in enumerate(size):
        center = (torch.arange(n, device=maps.device, dtype=maps.dtype) * 2 + 1) / n - 1
        centers.append(center.view([-1 if other == axis else 1 for other in range(d)]))
    positions = []
    for row in range(d):
        position = maps[:, row, -1].view(-1, *[1] * d)
        for column in range(d):
            position = position + maps[:, row, column].view(-1, *[1] * d) * centers[d - 1 - column]
        positions.append(position)
    return positions


def weighted_rows(x: Tensor, cells: Tensor, weights: Tensor, axis: int, rows: Tensor | None = None) -> Tensor:
    """Replace the cells of one axis by weighted sums of some of them.

    Args:
        x: (B, ..., C) floats; fastest where ``axis`` is 1 and x is contiguous.
        cells: (N, n_out, T) int64, the cells of the axis that each sum takes.
        weights: (N, n_out, T).
        axis: which axis of x.
        rows: (N,) int64, the input of each sum; None where N = B and each has its own.

    Returns:
        (N, ..., C).
    """
    moved = x.movedim(axis, 1)
    count, n_in = moved.shape[:2]
    inputs = torch.arange(count, device=x.device) if rows is None else rows.to(x.device, non_blocking=True)
    first = inputs.view(-1, 1, 1) * n_in
    sums = F.embedding_bag(
        (cells + first).flatten(0, 1),
        moved.reshape(count * n_in, -1),
        mode="sum",
        per_sample_weights=weights.to(x.dtype).flatten(0, 1),
    )
    return sums.view(len(cells), cells.shape[1], *moved.shape[2:]).movedim(1, axis)


def axis_taps(
    low: Tensor, high: Tensor, n_out: int, kind: Filter, extent: Tensor, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Which cells each output cell of an axis takes, and how much of each.

    Output cell i covers the i-th of ``n_out`` equal parts of the input from ``low`` to ``high``.

    Args:
        low, high: (B,) where the output begins and ends, in normalized input coordinates; low > high flips.
        extent: (B,) cells of the input.

    Returns:
        Cells and weights, each (B, n_out, T), on ``device``.
    """
    extent = extent.to(low)
    step = (high - low) / 2 * extent / n_out
    # On the CPU, where the maps lie: the number of taps must be known here.
    taps = math.ceil(2 * _REACH[kind] * max(1.0, float(step.abs().max()))) + 1
    start, step, extent = (v.to(device, non_blocking=True) for v in ((low + 1) / 2 * extent, step, extent))
    place = torch.arange(n_out, device=device, dtype=low.dtype) + 0.5
    center = torch.addcmul(start.view(-1, 1), step.view(-1, 1), place.view(1, -1)).unsqueeze(-1)
    width = step.abs().view(-1, 1, 1)
    reach = _REACH[kind] * (width if kind == "area" else width.clamp(min=1))
    offset = 0.0 if kind == "area" else 0.5
    cells = torch.floor(center - reach + offset) + torch.arange(taps, device=device, dtype=low.dtype)
    if kind == "area":
        overlap = torch.minimum(center + width / 2, cells + 1) - torch.maximum(center - width / 2, cells)
        weights = overlap.clamp(min=0) / width
    else:
        distance = (cells + 0.5 - center).abs() / width.clamp(min=1)
        weights = (1 - distance).clamp(min=0) if kind == "bilinear" else _keys_cubic(distance)
    last = extent.view(-1, 1, 1) - 1
    weights = weights * ((cells >= 0) & (cells <= last))
    if kind != "area":
        weights = weights / weights.sum(-1, keepdim=True).clamp(min=torch.finfo(low.dtype).eps)
    return torch.minimum(cells.clamp(min=0), last).long(), weights


def _keys_cubic(distance: Tensor, a: float = -0.5) -> Tensor:
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((distance - 5) * distance + 8) * distance * a - 4 * a
    return torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))


def group_rows(maps: Tensor, size: Sequence[int], kind: Filter, extent: Tensor) -> list[tuple[Way, Tensor]]:
    """Rows of the batch that are sampled in one way, which is their own: whoever else is in the batch.

    Arguments as for :func:`sample`, all on the CPU.

    Returns:
        Ways and rows. A way is the axes that maps exchange: ``axes[i]`` is the output coordinate that input coordinate
        i (x first) follows. For maps that mix axes it is into how many parts output cells are divided along each axis.
    """
    linear = maps[..., :-1].abs()
    along = linear > _AXIS_TOLERANCE * linear.amax(dim=(-1, -2), keepdim=True)
    aligned = (along.sum(-1) == 1).all(-1) & (along.sum(-2) == 1).all(-1)
    groups: list[tuple[Way, Tensor]] = []
    columns = along.to(torch.int64).argmax(-1)
    if bool(aligned.any()):
        for axes in torch.unique(columns[aligned], dim=0):
            groups.append((tuple(axes.tolist()), (aligned & (columns == axes).all(-1)).nonzero().squeeze(-1)))
    if not bool(aligned.all()):
        parts = _parts(maps, size, kind, extent)
        for part in torch.unique(parts[~aligned]).tolist():
            groups.append((part, (~aligned & (parts == part)).nonzero().squeeze(-1)))
    return groups


def _parts(maps: Tensor, size: Sequence[int], kind: Filter, extent: Tensor) -> Tensor:
    """(B,) int64: into how many parts output cells are divided along each axis so that nothing aliases."""
    cells = extent.flip(-1).to(maps).unsqueeze(-1)  # x first, like the maps
    steps = (maps[..., :-1] * cells).norm(dim=1) / torch.tensor(tuple(size)).flip(0)
    parts = torch.ceil(steps.amax(-1) - _STEP_TOLERANCE).clamp(min=1).to(torch.int64)
    return (2 * parts).clamp(min=_SUBSAMPLES) if kind == "area" else parts


def _resample_group(
    x: Tensor, maps: Tensor, size: Sequence[int], kind: Filter, extent: Tensor, way: Way, rows: Tensor | None
) -> Tensor:
    if isinstance(way, int):
        x = x if rows is None else x[rows.to(x.device, non_blocking=True)]
        return _resample_grid(x, maps, size, kind, extent, way)
    return _resample_axes(x, maps, size, kind, extent, way, rows)


def _resample_axes(
    x: Tensor,
    maps: Tensor,
    size: Sequence[int],
    kind: Filter,
    extent: Tensor,
    axes: tuple[int, ...],
    rows: Tensor | None,
) -> Tensor:
    """One matrix per axis. ``axes[i]``: the output coordinate that input coordinate i (x first) follows."""
    d = len(axes)
    # Channels last, as decoded images lie in memory: the first axis then needs no copy.
    cells = x.movedim(1, -1)
    order = [0] * d
    for row in reversed(range(d)):
        axis, out_axis = d - 1 - row, d - 1 - axes[row]
        scale, shift = maps[:, row, axes[row]], maps[:, row, -1]
        taps = axis_taps(shift - scale, shift + scale, size[out_axis], kind, extent[:, axis], x.device)
        cells = weighted_rows(cells, *taps, axis=1 + axis, rows=rows)
        rows = None  # each map has its own from here on
        order[out_axis] = axis
    return cells.permute(0, -1, *[1 + axis for axis in order])


def _resample_grid(x: Tensor, maps: Tensor, size: Sequence[int], kind: Filter, extent: Tensor, parts: int) -> Tensor:
    """Maps that turn by any angle: samples on a finer grid, averaged."""
    samples = sample_finely(x, maps, size, kind, extent, parts)
    if parts == 1:
        return samples
    return (F.avg_pool2d if maps.shape[1] == 2 else F.avg_pool3d)(samples, parts)


def sample_finely(x: Tensor, maps: Tensor, size: Sequence[int], kind: Filter, extent: Tensor, parts: int) -> Tensor:
    """Samples on a grid that divides each output cell into ``parts`` along each axis: (B, C, *finer grid).

    Other arguments as for :func:`sample`, with an ``extent`` on the CPU.
    """
    d = maps.shape[1]
    maps = maps.to(torch.promote_types(x.dtype, torch.float32))
    cells = extent.flip(-1).to(maps)  # x first, like the maps
    fine_size = [n * parts for n in size]
    canvas = torch.tensor(x.shape[2:]).flip(0).to(maps)
    share = (cells / canvas).unsqueeze(-1)
    onto_canvas = maps * share
    onto_canvas[..., -1:] += share - 1
    grid = torch.stack(_positions(onto_canvas.to(x.device, non_blocking=True), fine_size), dim=-1)
    # Never sample the padding beyond an input: stay half a cell inside.
    edge = ((2 * cells - 1) / canvas - 1).view(len(x), *[1] * d, d).to(x.device, non_blocking=True)
    grid = torch.minimum(grid, edge)
    mode = "nearest" if kind == "area" else "bilinear"
    return _sample_grid(x, grid, mode=mode, padding_mode="border")


def _sample_grid(x: Tensor, grid: Tensor, mode: str, padding_mode: str) -> Tensor:
    """``F.grid_sample``, in the wider type of the two: bfloat16 does not tell the places of a large map apart."""
    wide = torch.promote_types(x.dtype, grid.dtype)
    return F.grid_sample(x.to(wide), grid.to(wide), mode=mode, padding_mode=padding_mode, align_corners=False)
