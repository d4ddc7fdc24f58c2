"""Sampling images, volumes, feature maps and label maps through affine maps.

For a crop, a flip or a quarter turn, every output position is a weighted sum of a few input positions along each axis,
so the axes are processed one after another, as sums of a few rows. What other maps rotate is resized along its axes
first, then sampled; labels are sampled on a finer grid, and averaged.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from densepath.core.boxes import needed_boxes, onto_boxes
from densepath.core.filters import Mode, axis_taps, weighted_rows
from densepath.core.grids import EDGE_TOLERANCE, average_parts, inside, position_terms, positions, sample_grid
from densepath.core.map_kinds import Aligned, Oblique, group_rows
from densepath.core.shrinking import resize, shrink, shrunk_sides
from densepath.core.volume_sampling import sample_volumes

Terms = list[list[Tensor]]  # of each coordinate, see ``core.grids``
Taps = Sequence[tuple[Tensor, Tensor]]  # of each axis: positions and weights, see ``core.filters``
_CACHED = 2**21  # numbers of inputs that are sampled at a time on a CPU, per thread
_CACHED_SAMPLES = 2**15  # positions of a rotated view that are sampled at a time on a CPU, per thread


def resample(x: Tensor, maps: Tensor, size: Sequence[int], *, mode: Mode = "bilinear") -> tuple[Tensor, Tensor]:
    """The result of :func:`sample`, and (B, *size) bool: whether a position's center lies in the input."""
    return sample(x, maps, size, mode=mode), inside(maps.to(x.device, non_blocking=True), size)


def sample(
    x: Tensor,
    maps: Tensor,
    size: Sequence[int],
    *,
    mode: Mode = "bilinear",
    extent: Tensor | None = None,
    rows: Tensor | None = None,
) -> Tensor:
    """Sample inputs through maps that take output coordinates to input coordinates (see ``core.affine``).

    The filters are a box ("area": weights are shares of area), a triangle ("bilinear") and Keys' cubic with a = -0.5
    ("bicubic"); they widen by the minification, so nothing aliases, and the latter two are normalized at the borders,
    as Pillow's and torchvision's antialiased resize do. For rotations by other angles than quarter turns, "area"
    means nearest and "bicubic" bilinear samples (except along an axis of a volume that keeps its direction).

    Args:
        x: (B, C, *spatial).
        maps: (N, d, d + 1), best on the CPU.
        size: the output's spatial size.
        rows: (N,) int64, the input that each map samples, on the CPU; None where N = B and each samples its own.
        extent: (N, d) sizes, in the order of the tensor's axes, of the inputs that lie in the low corner of a
            larger canvas; the maps' coordinates are those of the inputs.

    Returns:
        (N, C, *size) floats, zero where a position's center lies outside the input.
    """
    extent = torch.tensor(x.shape[2:]).expand(len(maps), -1) if extent is None else extent.cpu()
    host = maps.detach().cpu()
    if host.shape[1] == 3 and x.device.type == "cpu":
        out = sample_volumes(x, host, size, mode, extent, torch.arange(len(host)) if rows is None else rows)
    else:
        if not x.is_floating_point() and x.device.type != "cpu":
            x = x.to(torch.float32)  # on a CPU, a few inputs at a time
        out = _sample_groups(x, host, size, mode, extent, rows)
    if bool((host[..., :-1].abs().sum(-1) + host[..., -1].abs() > 1 + EDGE_TOLERANCE).any()):
        out = out * inside(maps.to(x.device, non_blocking=True), size).unsqueeze(1)
    return out


def _sample_groups(
    x: Tensor, host: Tensor, size: Sequence[int], mode: Mode, extent: Tensor, rows: Tensor | None
) -> Tensor:
    """All maps of one kind at once."""
    groups = group_rows(host, size, mode, extent)
    kept = x.dtype if x.is_floating_point() else torch.float32
    if len(groups) == 1:
        return _sample_group(x, host, size, mode, extent, groups[0][0], rows).to(kept)
    out = x.new_empty(len(host), x.shape[1], *size, dtype=kept)
    for kind, group in groups:
        here = group.to(x.device, non_blocking=True)
        inputs = group if rows is None else rows[group]
        out[here] = _sample_group(x, host[group], size, mode, extent[group], kind, inputs).to(kept)
    return out


def sample_nearest(x: Tensor, maps: Tensor, size: Sequence[int]) -> Tensor:
    """The input's values at the centers of output positions, without a filter: for masks.

    Args:
        x: (B, C, *spatial) floats.
        maps: (B, d, d + 1), as for :func:`sample`.
        size: the output's spatial size.

    Returns:
        (B, C, *size), zero where a position's center lies outside the input.
    """
    grid = torch.stack(positions(maps.to(x.device, non_blocking=True), size), dim=-1)
    return sample_grid(x, grid, mode="nearest", padding_mode="zeros").to(x.dtype)


def _sample_group(
    x: Tensor,
    maps: Tensor,
    size: Sequence[int],
    mode: Mode,
    extent: Tensor,
    kind: Aligned | Oblique,
    rows: Tensor | None,
) -> Tensor:
    if isinstance(kind, Aligned):
        return _sample_axes(x, maps, size, mode, extent, kind.axes, rows)
    if x.device.type != "cpu" or maps.shape[1] == 3:  # on a CPU, volumes are sampled one by one elsewhere
        x = x if rows is None else x[rows.to(x.device, non_blocking=True)]
        if kind.flat:
            return _sample_planes(x, maps, size, mode, extent, kind.parts)
        resized: Mode = "bilinear" if mode == "bicubic" and maps.shape[1] == 2 else mode
        return _sample_together(x, maps, size, resized, extent, kind.parts)
    if mode != "area":
        return _sample_shrunk(x, maps, size, extent, rows)
    out = x.new_empty(len(maps), x.shape[1], *size, dtype=x.dtype if x.is_floating_point() else torch.float32)
    for own in torch.arange(len(maps)).split(torch.get_num_threads()):
        values = _floats(x[own if rows is None else rows[own]])
        grid = _fine_grid(values, maps[own], size, extent[own], kind.parts)
        out[own] = _sample_strips(values, *grid, size, mode, kind.parts)
    return out


def _sample_together(
    x: Tensor, maps: Tensor, size: Sequence[int], mode: Mode, extent: Tensor, parts: Sequence[int]
) -> Tensor:
    """All maps at once; unless areas are sampled, inputs are resized along their axes before."""
    if mode != "area":
        low, high = needed_boxes(maps, size, mode, extent).unbind(1)
        x, maps, extent = shrink(x, maps, size, extent, low, high, mode)
    return average_parts(sample_finely(x, maps, size, mode, extent, parts), parts)


def _sample_planes(
    x: Tensor, maps: Tensor, size: Sequence[int], mode: Mode, extent: Tensor, parts: Sequence[int]
) -> Tensor:
    """The same for maps that rotate in the xy-plane: sums along z, then samples of images whose channels are slices."""
    scale, shift = maps[:, 2, 2], maps[:, 2, 3]
    taps = axis_taps(shift - scale, shift + scale, size[0], mode, extent[:, 0], x.device)
    slices = weighted_rows(x, *taps, axis=2)
    planes = torch.cat((maps[:, :2, :2], maps[:, :2, 3:]), dim=-1)
    made = _sample_together(slices.flatten(1, 2), planes, size[1:], mode, extent[:, 1:], parts[1:])
    return made.unflatten(1, slices.shape[1:3])


def _sample_shrunk(x: Tensor, maps: Tensor, size: Sequence[int], extent: Tensor, rows: Tensor | None) -> Tensor:
    """Bilinear samples of images resized along their axes before: one by one, only what each needs."""
    low, high = needed_boxes(maps, size, "bilinear", extent).unbind(1)
    out = []
    maps = onto_boxes(maps, extent, low, high)
    sides = [shrunk_sides(*each, size) for each in zip(maps.tolist(), (high - low).tolist(), strict=True)]
    # The grids of all maps together: for small views they take longer than the samples.
    terms, edges = _fine_grid(x, maps, size, torch.tensor(sides), (1, 1), canvas=torch.tensor(sides))
    inputs = range(len(maps)) if rows is None else rows.tolist()
    for number, ((top, left), (bottom, right), row) in enumerate(zip(low.tolist(), high.tolist(), inputs, strict=True)):
        values = resize(_floats(x[row : row + 1, :, top:bottom, left:right]), sides[number])
        own = slice(number, number + 1)
        grid = [[term[own] for term in each] for each in terms], [edge[own] for edge in edges]
        made = _sample_strips(values, *grid, size, "bilinear", (1, 1)) if values.numel() else None
        out.append(values.new_zeros(1, x.shape[1], *size) if made is None else made)
    return torch.cat(out)


def _sample_strips(
    x: Tensor, terms: Terms, edges: Sequence[Tensor], size: Sequence[int], mode: Mode, parts: Sequence[int]
) -> Tensor:
    """Means of samples on a finer grid, a few output rows at a time: they stay in the processor's cache."""
    lines = max(1, _CACHED_SAMPLES // math.prod([*size[1:], *parts]))
    strips = []
    for start in range(0, size[0], lines):
        span = slice(start * parts[0], (start + lines) * parts[0])
        of_strip = [[*others, first[:, span]] for *others, first in terms]
        strips.append(average_parts(_sample_fine_grid(x, of_strip, edges, mode), parts).to(x.dtype))
    return torch.cat(strips, dim=2)


def _sample_axes(
    x: Tensor,
    maps: Tensor,
    size: Sequence[int],
    mode: Mode,
    extent: Tensor,
    axes: tuple[int, ...],
    rows: Tensor | None,
) -> Tensor:
    """One matrix per axis. ``axes[i]``: the output coordinate that input coordinate i (x first) follows."""
    d = len(axes)
    taps = []
    for row in reversed(range(d)):
        axis, out_axis = d - 1 - row, d - 1 - axes[row]
        scale, shift = maps[:, row, axes[row]], maps[:, row, -1]
        taps.append(axis_taps(shift - scale, shift + scale, size[out_axis], mode, extent[:, axis], x.device))
    # Channels last, as decoded images lie in memory: the first axis then needs no copy.
    table = x.movedim(1, -1)
    if x.device.type == "cpu" and d == 2 and (count := _CACHED * torch.get_num_threads() // table[0].numel()) < len(x):
        out = _sums_in_parts(table, taps, rows, max(1, count))
    else:
        out = _sums(_floats(table), taps, rows)
    order = [0] * d
    for row in range(d):
        order[d - 1 - axes[row]] = d - 1 - row
    return out.permute(0, -1, *[1 + axis for axis in order])


def _sums(table: Tensor, taps: Taps, rows: Tensor | None) -> Tensor:
    """Weighted sums along one axis of a table (B, *spatial, C) after another."""
    for axis, (places, weights) in enumerate(taps, 1):
        table = weighted_rows(table, places, weights, axis=axis, rows=rows)
        rows = None  # after the first axis, each map has its own input
    return table


def _sums_in_parts(table: Tensor, taps: Taps, rows: Tensor | None, count: int) -> Tensor:
    """The same for a few inputs at a time: their floats stay in the processor's cache."""
    parts = []
    for start in range(0, len(table), count):
        inputs = slice(start, start + count)
        chosen: Any = inputs if rows is None else ((rows >= start) & (rows < start + count)).nonzero().squeeze(-1)
        if rows is not None and not len(chosen):
            continue  # a group of maps need not have one of each input
        own = [(places[chosen], weights[chosen]) for places, weights in taps]
        parts.append((chosen, _sums(_floats(table[inputs]), own, None if rows is None else rows[chosen] - start)))
    if rows is None:
        return torch.cat([part for _, part in parts])
    out = parts[0][1].new_empty(len(rows), *parts[0][1].shape[1:])
    for chosen, part in parts:
        out[chosen] = part
    return out


def _floats(x: Tensor) -> Tensor:
    return x if x.is_floating_point() else x.to(torch.float32)


def sample_finely(
    x: Tensor, maps: Tensor, size: Sequence[int], mode: Mode, extent: Tensor, parts: Sequence[int]
) -> Tensor:
    """Samples on a grid that divides each output position into ``parts`` along each axis: (B, C, *finer grid).

    Other arguments as for :func:`sample`, with an ``extent`` on the CPU.
    """
    return _sample_fine_grid(x, *_fine_grid(x, maps, size, extent, parts), mode)


def _fine_grid(
    x: Tensor, maps: Tensor, size: Sequence[int], extent: Tensor, parts: Sequence[int], canvas: Tensor | None = None
) -> tuple[Terms, Sequence[Tensor]]:
    """The terms of the coordinates of a finer grid on the canvas x, and the largest value of each coordinate.

    ``canvas``: (N, d) the size of the canvas of each map, if it is not x.
    """
    d = maps.shape[1]
    maps = maps.to(torch.promote_types(x.dtype, torch.float32))
    across = extent.flip(-1).to(maps)  # x first, like the maps
    fine_size = [n * part for n, part in zip(size, parts, strict=True)]
    canvas = (torch.tensor(x.shape[2:]) if canvas is None else canvas).flip(-1).to(maps)
    share = (across / canvas).unsqueeze(-1)
    onto_canvas = maps * share
    onto_canvas[..., -1:] += share - 1
    # Never sample the padding beyond an input: stay half a pixel inside.
    edges = ((2 * across - 1) / canvas - 1).to(x.device, non_blocking=True)
    terms = position_terms(onto_canvas.to(x.device, non_blocking=True), fine_size)
    return terms, edges.view(len(maps), d, *[1] * d).unbind(1)


def _sample_fine_grid(x: Tensor, terms: Terms, edges: Sequence[Tensor], mode: Mode) -> Tensor:
    places = [torch.minimum(reduce(torch.add, own), edge) for own, edge in zip(terms, edges, strict=True)]
    # Pairs as complex numbers: five times faster than to stack them.
    grid = torch.view_as_real(torch.complex(*places)) if len(places) == 2 else torch.stack(places, dim=-1)
    return sample_grid(x, grid, mode="nearest" if mode == "area" else "bilinear", padding_mode="border")
