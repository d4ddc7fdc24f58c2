"""Label maps with any number of labels, warped to the positions of views without a mask for each label."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from densepath.core.affine import TIE, between
from densepath.core.filters import axis_taps
from densepath.core.grids import inside
from densepath.core.map_kinds import Aligned, Oblique, group_rows
from densepath.core.resampling import sample_finely

# Integer sums do not depend on the order of addition; float sums on a GPU do.
_UNIT = 2**40
_FEW = 1024


def main_labels(labels: Tensor, from_map: Tensor, to_map: Tensor, size: Sequence[int]) -> Tensor:
    """The label that covers most of each position of another view; ties go to the smallest label.

    The result of :func:`densepath.core.affine.warp_labels`, but without a mask for each label: the shares of the labels
    under each position are summed.

    Args:
        labels: (B, *spatial) integers on the *from* view; negative ones are ignored.
        from_map, to_map: (B, d, d + 1) the two views' maps to their common sources, best on the CPU.
        size: the positions of the *to* view, in the order of the tensor's axes.

    Returns:
        (B, *size) int64, -1 where a position's center lies outside the *from* view or no label is under it.
    """
    maps = between(from_map, to_map).detach().cpu()
    groups = group_rows(maps, size, "area", torch.tensor(labels.shape[1:]).expand(len(labels), -1))
    if len(groups) == 1:
        out = _main_labels(labels, maps, size, groups[0][0])
    else:
        out = torch.empty(len(labels), *size, dtype=torch.int64, device=labels.device)
        for kind, rows in groups:
            here = rows.to(labels.device, non_blocking=True)
            out[here] = _main_labels(labels[here], maps[rows], size, kind)
    return torch.where(inside(maps.to(labels.device, non_blocking=True), size), out, -1)


def number_together(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Number the labels of the first of two maps from 0, in the order in which they appear, on both maps.

    Args:
        first, second: (B, *spatial) integers; negative ones are ignored.

    Returns:
        Both maps: ids below the number of positions of the first, -1 for labels of the second that the first lacks.
    """
    positions = first.flatten(1)
    same = positions.unsqueeze(2) == positions.unsqueeze(1)  # (B, positions, positions)
    earliest = same.to(torch.uint8).argmax(2)
    new = (earliest == torch.arange(positions.shape[1], device=positions.device)) & (positions >= 0)
    number = new.cumsum(1) - 1  # at the first position of each label, its number

    def renumber(labels: Tensor) -> Tensor:
        flat = labels.flatten(1)
        matches = (flat.unsqueeze(2) == positions.unsqueeze(1)) & (flat >= 0).unsqueeze(2)
        found = number.gather(1, matches.to(torch.uint8).argmax(2))
        return torch.where(matches.any(2), found, -1).view(labels.shape)

    return renumber(first), renumber(second)


def _main_labels(labels: Tensor, maps: Tensor, size: Sequence[int], kind: Aligned | Oblique) -> Tensor:
    if isinstance(kind, Oblique):
        under, shares = _under_turned_positions(labels, maps, size, kind.parts)
    else:
        under, shares = _under_upright_positions(labels, maps, size, kind.axes)
    shares = shares * (under >= 0)
    # On a CPU, reading the number of labels is free, and sums of few labels are several times as fast.
    few = under.device.type == "cpu" and int(under.max()) < _FEW
    main = _main_of_few(under, shares) if few else _main_of_many(under, shares)
    return main.view(len(labels), *size)


def _main_of_few(under: Tensor, shares: Tensor) -> Tensor:
    """The label with the largest sum of shares (B, positions, T), by a table of all labels."""
    table = shares.new_zeros(*under.shape[:2], max(1, int(under.max()) + 1))
    table.scatter_add_(2, under.to(torch.int64).clamp(min=0), shares)
    most = table.amax(-1, keepdim=True)
    first = (table >= most - TIE).to(torch.uint8).argmax(-1)
    return torch.where(most.squeeze(-1) > TIE, first, -1)


def _main_of_many(under: Tensor, shares: Tensor) -> Tensor:
    """The same by sorting, without synchronization with the device."""
    under, order = under.sort(dim=-1)
    covered = (shares.gather(-1, order) * _UNIT).to(torch.int64).cumsum(-1)
    change = under[..., 1:] != under[..., :-1]
    last = torch.cat((change, torch.ones_like(change[..., :1])), dim=-1)  # of each label's run
    ends = torch.where(last, covered, 0).cummax(-1).values
    before = torch.cat((torch.zeros_like(ends[..., :1]), ends[..., :-1]), dim=-1)
    sums = torch.where(last, covered - before, 0)
    most = sums.amax(-1, keepdim=True)
    tie = int(TIE * _UNIT)
    first = (sums >= (most - tie).clamp(min=1)).to(torch.uint8).argmax(-1, keepdim=True)
    return torch.where(most > tie, under.gather(-1, first).to(torch.int64), -1).squeeze(-1)


def _under_upright_positions(
    labels: Tensor, maps: Tensor, size: Sequence[int], axes: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """The labels under each output position and what share of it each covers, both (B, positions, T).

    ``axes[i]``: the output coordinate that input coordinate i (x first) follows.
    """
    d, count = len(axes), len(labels)
    offset = torch.zeros(count, *[1] * (2 * d), dtype=torch.int64, device=labels.device)
    share = torch.ones_like(offset, dtype=torch.float32)
    stride = 1
    for row in range(d):  # the last axis of the tensor first
        axis, out_axis = d - 1 - row, d - 1 - axes[row]
        scale, shift = maps[:, row, axes[row]], maps[:, row, -1]
        extent = torch.full((count,), labels.shape[1 + axis])
        positions, weights = axis_taps(shift - scale, shift + scale, size[out_axis], "area", extent, labels.device)
        shape = [count, *[1] * (2 * d)]
        shape[1 + out_axis], shape[1 + d + out_axis] = positions.shape[1:]
        offset = offset + stride * positions.view(shape)
        share = share * weights.view(shape)
        stride *= labels.shape[1 + axis]
    under = labels.flatten(1).gather(1, offset.flatten(1)).view(offset.shape)
    return under.flatten(1, d).flatten(2), share.flatten(1, d).flatten(2)


def _under_turned_positions(
    labels: Tensor, maps: Tensor, size: Sequence[int], parts: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """The same for maps that rotate by any angle: samples on a finer grid, all with the same share."""
    d = maps.shape[1]
    extent = torch.tensor(labels.shape[1:]).expand(len(labels), -1)
    # As floats, which represent integers up to 2**24 exactly.
    samples = sample_finely(labels.unsqueeze(1).to(torch.float32), maps, size, "area", extent, parts)
    split = [length for pair in zip(size, parts, strict=True) for length in pair]
    axes = [0, *range(1, 2 * d, 2), *range(2, 2 * d + 1, 2)]
    under = samples.to(labels.dtype).view(len(labels), *split).permute(axes)
    under = under.flatten(1, d).flatten(2)
    return under, torch.full_like(under, 1 / under.shape[-1], dtype=torch.float32)
