"""Sampling volumes on a CPU: one map after another, each only on the voxels that it needs.

Volumes are large and few. Processed as one table, a batch would have the size of its largest volume, one order of axes,
and the sampling density of the map that shrinks most.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from densepath.core.boxes import needed_boxes
from densepath.core.filters import Mode, axis_taps, tap_count, whole_axis_taps
from densepath.core.grids import average_parts, positions, sample_grid
from densepath.core.map_kinds import aligned_axes, keeps_z, oblique_parts
from densepath.core.shrinking import SLACK
from densepath.core.trilinear import sample_trilinear

Map: TypeAlias = list[list[float]]  # 3 x 4, from output to input coordinates, x first
Taps: TypeAlias = dict[int, tuple[Tensor, Tensor]]  # positions and weights (n_out, T) along some axes of the tensor
Along: TypeAlias = tuple[float, float, int, int]  # the scale and shift of a map along an axis, n_out and n_in

_COLUMNS = 16  # of a matrix that are multiplied at a time, where it is worth it: from so many products
_PRODUCTS = 2**22
_GRIDS = 2**18  # positions of the grids that are computed together


class Plan(NamedTuple):
    """How a map samples the voxels that it needs.

    Args:
        low, high: corners of the box that it needs, in the order of the tensor's axes.
        map: from the output to the box.
        axes: see :func:`~densepath.core.map_kinds.aligned_axes`.
        flat: whether it is not aligned, and rotates in the xy-plane only.
        parts: into how many parts positions are divided along each axis.
    """

    low: list[int]
    high: list[int]
    map: Map
    axes: tuple[int, ...] | None
    flat: bool
    parts: Sequence[int]


def sample_volumes(x: Tensor, maps: Tensor, size: Sequence[int], mode: Mode, extent: Tensor, rows: Tensor) -> Tensor:
    """The result of :func:`densepath.core.resampling.sample` for volumes, except for positions outside of them.

    Args:
        x: (B, C, D, H, W) of any type.
        maps: (N, 3, 4), size, mode, extent: as there.
        rows: (N,) int64, the input that each map samples.
    """
    parts = oblique_parts(maps, size, mode, extent).tolist()
    boxes = needed_boxes(maps, size, mode, extent).tolist()
    # One map is few numbers: Python computes them many times faster than tensor operations.
    plans = [_plan(*each) for each in zip(maps.double().tolist(), extent.tolist(), boxes, parts, strict=True)]
    taps = _taps([_kept_axes(plan, size) for plan in plans], mode)
    dtype = x.dtype if x.is_floating_point() else torch.float32
    grids = _grids(plans, size, torch.promote_types(dtype, torch.float32))
    out = []
    for number, (plan, row) in enumerate(zip(plans, rows.tolist(), strict=True)):
        if plan is None:
            out.append(torch.zeros(x.shape[1], *size, dtype=dtype))
            continue
        box = tuple(slice(*ends) for ends in zip(plan.low, plan.high, strict=True))
        out.append(_sample(x[(row, slice(None), *box)].to(dtype), plan, size, mode, taps[number], grids.get(number)))
    return torch.stack(out)


def _plan(map_: Map, extent: list[int], box: list[list[int]], parts: Sequence[int]) -> Plan | None:
    """How a map samples the voxels that it needs; None if it needs none."""
    low, high = box
    if any(b <= a for a, b in zip(low, high, strict=True)):
        return None
    own = _onto_box(map_, extent, low, high)
    axes = aligned_axes(own)
    return Plan(low, high, own, axes, axes is None and keeps_z(own), parts)


def _kept_axes(plan: Plan | None, size: Sequence[int]) -> dict[int, Along]:
    """The axes of the volume that an axis of the output follows, and how."""
    if plan is None or not (plan.axes or plan.flat):
        return {}
    return {
        2 - row: (plan.map[row][column], plan.map[row][3], size[2 - column], plan.high[2 - row] - plan.low[2 - row])
        for row, column in enumerate(plan.axes or (-1, -1, 2))
        if column >= 0
    }


def _taps(kept: list[dict[int, Along]], mode: Mode) -> list[Taps]:
    """The taps along the axes of all maps: those of the same shape are computed together."""
    groups: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    for number, axes in enumerate(kept):
        for axis, (scale, shift, n_out, n_in) in axes.items():  # the step is rounded as axis_taps rounds it
            groups[n_out, tap_count((shift + scale - (shift - scale)) / 2 * n_in / n_out, mode)].append((number, axis))
    made: list[Taps] = [{} for _ in kept]
    for (n_out, _), members in groups.items():
        scale, shift, _, n_in = torch.tensor([kept[number][axis] for number, axis in members], dtype=torch.float64).T
        both = axis_taps(shift - scale, shift + scale, n_out, mode, n_in, n_in.device)
        for (number, axis), *own in zip(members, *both, strict=True):
            made[number][axis] = (own[0], own[1])
    return made


def _grids(plans: Sequence[Plan | None], size: Sequence[int], dtype: torch.dtype) -> dict[int, Tensor]:
    """The grids (1, H, W, 2) of maps that rotate in the xy-plane, by their numbers: several maps at once."""
    groups: dict[tuple[int, ...], dict[int, Map]] = defaultdict(dict)
    for number, plan in enumerate(plans):
        if plan is not None and plan.flat:
            groups[_fine_plane(plan, size)][number] = plan.map
    made: dict[int, Tensor] = {}
    for fine, maps in groups.items():
        if len(maps) * math.prod(fine) <= _GRIDS:
            made |= zip(maps, _plane_grids([*maps.values()], fine, dtype).split(1), strict=True)
    return made


def _fine_plane(plan: Plan, size: Sequence[int]) -> tuple[int, ...]:
    """The number of positions along y and x, parts included."""
    return tuple(n * part for n, part in zip(size[1:], plan.parts[1:], strict=True))


def _plane_grids(maps: Sequence[Map], fine: Sequence[int], dtype: torch.dtype) -> Tensor:
    """The grids (N, H, W, 2) of maps in the xy-plane."""
    planes = [[[row[0], row[1], row[3]] for row in map_[:2]] for map_ in maps]
    return torch.stack(positions(torch.tensor(planes, dtype=torch.float64).to(dtype), fine), dim=-1)


def _onto_box(map_: Map, extent: list[int], low: list[int], high: list[int]) -> Map:
    """The map to a volume as a map to a box of it, in float64, where rounding does not matter."""
    made = []
    for row, n, start, end in zip(map_, reversed(extent), reversed(low), reversed(high), strict=True):
        side = end - start
        made.append([*(value * n / side for value in row[:3]), (row[3] * n + n - 2 * start) / side - 1])
    return made


def _sample(x: Tensor, plan: Plan, size: Sequence[int], mode: Mode, taps: Taps, grid: Tensor | None) -> Tensor:
    """One map of one box (C, D, H, W) of a volume: (C, *size)."""
    if plan.axes is not None:
        return _along_axes(x, taps, plan.axes)
    if mode != "area":
        x = _shrunk(x, plan.map, size, mode, (1, 2) if plan.flat else (0, 1, 2))
    if plan.flat:
        return _in_plane(x, plan, size, mode, taps[0], grid)
    maps, parts = torch.tensor([plan.map], dtype=torch.float64), plan.parts
    if mode != "area" and not (x.requires_grad and torch.is_grad_enabled()):
        return sample_trilinear(x.detach().to(_wide(x)), maps[0], size).to(x.dtype)
    fine = [n * part for n, part in zip(size, parts, strict=True)]
    free = torch.stack(positions(maps.to(_wide(x)), fine), dim=-1)
    samples = sample_grid(x.unsqueeze(0), free, "nearest" if mode == "area" else "bilinear", "border")
    return average_parts(samples, parts)[0].to(x.dtype)


def _along_axes(x: Tensor, taps: Taps, axes: tuple[int, ...]) -> Tensor:
    """Sums along one axis after another."""
    order = [0] * 3
    for row in range(3):
        order[2 - axes[row]] = 2 - row
    for axis in _order(x.shape[1:], [len(taps[axis][0]) for axis in range(3)]):
        x = _sums(x, *taps[axis], axis)
    return x.permute(0, *[1 + axis for axis in order])


def _order(old: Sequence[int], new: Sequence[int]) -> tuple[int, ...]:
    """In what order axes are resized: of the first two, the one that shrinks more first; the last axis last."""
    return (*sorted((0, 1), key=lambda axis: new[axis] / old[axis]), 2)


def resized_numbers(old: Sequence[int], new: Sequence[int]) -> int:
    """How many numbers :func:`sample_volumes` holds at most, besides the input, while it resizes a whole volume.

    Args:
        old, new: D, H, W.
    """
    sides, counts = list(old), []
    for axis in _order(old, new):
        sides[axis] = new[axis]
        counts.append(math.prod(sides))
    return max(counts[0] + counts[1], counts[1] + counts[2], 2 * counts[2])  # the result is copied


def _shrunk(x: Tensor, map_: Map, size: Sequence[int], mode: Mode, axes: Sequence[int]) -> Tensor:
    """A volume (C, D, H, W) resized along some axes, so that a map that rotates it shrinks it no further."""
    steps = [x.shape[1 + axis] / n for axis in range(3) for n in reversed(size)]
    rates = [math.hypot(*(v * s for v, s in zip(map_[2 - a][:3], steps[3 * a :], strict=False))) for a in range(3)]
    for axis in sorted(axes, key=lambda axis: (axis == 2, -rates[axis])):  # along the last one it costs most
        if rates[axis] > 1 + SLACK:
            n_in = x.shape[1 + axis]
            x = _sums(x, *whole_axis_taps(n_in, max(1, round(n_in / rates[axis])), mode), axis)
    return x


def _in_plane(
    x: Tensor, plan: Plan, size: Sequence[int], mode: Mode, taps: tuple[Tensor, Tensor], grid: Tensor | None
) -> Tensor:
    """A map that rotates in the xy-plane: samples of images whose channels are the slices."""
    before, parts = size[0] < x.shape[1], plan.parts[1:]
    x = _sums(x, *taps, 0) if before else x
    if grid is None:
        grid = _plane_grids([plan.map], _fine_plane(plan, size), _wide(x))
    samples = sample_grid(x.flatten(0, 1).unsqueeze(0), grid, "nearest" if mode == "area" else "bilinear", "border")
    x = average_parts(samples, parts)[0].unflatten(0, x.shape[:2]).to(x.dtype)
    return x if before else _sums(x, *taps, 0)


def _sums(x: Tensor, taps: Tensor, weights: Tensor, axis: int) -> Tensor:
    """Sums of x (C, D, H, W) along one spatial axis, at taps (n_out, T) with weights."""
    (n_out, _), n_in, weights = taps.shape, x.shape[1 + axis], weights.to(x.dtype)
    if axis == 2:
        matrix = x.new_zeros(n_in, n_out).index_put_((taps, torch.arange(n_out).unsqueeze(1)), weights, accumulate=True)
        with torch.autocast("cpu", enabled=False):  # the other axes have the precision of x as well
            return _banded(x, matrix, taps)
    shape = x.shape
    before, after = shape[: 1 + axis].numel(), shape[2 + axis :].numel()
    first = torch.arange(before).view(-1, 1, 1) * n_in
    sums = F.embedding_bag(
        (taps + first).flatten(0, 1),
        x.reshape(before * n_in, after),
        mode="sum",
        per_sample_weights=weights.expand(before, -1, -1).flatten(0, 1),
    )
    return sums.view(*shape[: 1 + axis], n_out, *shape[2 + axis :])


def _banded(x: Tensor, matrix: Tensor, taps: Tensor) -> Tensor:
    """x @ matrix, whose columns have values at taps (n_out, T) only: some columns at a time, by the rows of these."""
    if x.numel() * len(taps) <= _PRODUCTS or x.requires_grad:
        return x @ matrix
    low, high = taps.amin(1), taps.amax(1) + 1
    table = x.reshape(-1, x.shape[-1])
    out = table.new_empty(len(table), len(taps))
    for start in range(0, len(taps), _COLUMNS):
        columns = slice(start, start + _COLUMNS)
        rows = slice(int(low[columns].min()), int(high[columns].max()))
        torch.mm(table[:, rows], matrix[rows, columns], out=out[:, columns])
    return out.view(*x.shape[:-1], -1)


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
