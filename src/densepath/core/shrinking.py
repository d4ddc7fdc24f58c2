"""Images resized along their axes before a map rotates them: what the map samples then needs no further filter."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from densepath.core.boxes import onto_boxes
from densepath.core.filters import Mode, axis_taps, weighted_rows, whole_axis_taps

SLACK = 0.25  # bilinear samples of what shrinks by less hardly alias


def axis_rates(maps: Tensor, size: Sequence[int], extent: Tensor) -> Tensor:
    """(N, d) input positions along each axis, in the order of the tensor's axes, for a step of the output.

    Args:
        maps: (N, d, d + 1) from output to input coordinates, on the CPU.
        size: the output's spatial size.
        extent: (N, d) the inputs' sizes.
    """
    across = extent.flip(-1).to(maps).unsqueeze(-1)
    return (maps[..., :-1] * across / torch.tensor(tuple(size)).flip(0)).norm(dim=-1).flip(-1)


def shrink(
    x: Tensor, maps: Tensor, size: Sequence[int], extent: Tensor, low: Tensor, high: Tensor, mode: Mode = "bilinear"
) -> tuple[Tensor, Tensor, Tensor]:
    """Resize images or volumes along the axes along which their maps shrink them.

    Args:
        x: (N, C, *spatial) floats, a canvas with the inputs in its low corner.
        maps: (N, d, d + 1) from output to input coordinates, on the CPU.
        size: the output's spatial size.
        extent: (N, d) the inputs' sizes, on the CPU.
        low, high: (N, d) corners of the boxes that the maps need. An input's result depends on its own box.
        mode: the filter.

    Returns:
        The resized inputs (N, C, *spatial), the maps to them and their sizes: arguments of a bilinear sample.
    """
    side = high - low
    rates = axis_rates(maps, size, extent)
    count = torch.where(rates > 1 + SLACK, (side / rates).round().long().clamp(min=1), side)
    shrinks = (count < side).any(0)
    # Along an axis where none shrinks the canvas stays as it is.
    low, high, side, count = (
        torch.where(shrinks, own, whole)
        for own, whole in ((low, torch.zeros_like(low)), (high, extent), (side, extent), (count, extent))
    )
    table = x.movedim(1, -1)
    start, step = 2 * low / extent - 1, 2 * side / extent / count
    for axis in shrinks.nonzero().flatten().tolist():
        most = int(count[:, axis].max())
        first = start[:, axis].double()
        ends = first, first + most * step[:, axis].double()
        taps = axis_taps(*ends, most, mode, extent[:, axis], x.device)
        table = weighted_rows(table, *taps, axis=1 + axis)
    return table.movedim(-1, 1), onto_boxes(maps, extent, low, high), count


def shrunk_sides(map_: Sequence[Sequence[float]], sides: Sequence[int], size: Sequence[int]) -> list[int]:
    """To which sides :func:`shrink` resizes what one map (2 x 3 numbers) needs of an image, of the given sides."""
    steps = [
        math.hypot(*(v * n / m for v, m in zip(map_[1 - axis], reversed(size), strict=False)))
        for axis, n in enumerate(sides)
    ]
    return [max(1, round(n / step)) if step > 1 + SLACK and n else n for n, step in zip(sides, steps, strict=True)]


def resize(x: Tensor, sides: Sequence[int]) -> Tensor:
    """An image (1, C, H, W) on a CPU resized along the axes whose sides differ."""
    table = x.movedim(1, -1)
    for axis, (n, count) in enumerate(zip(x.shape[2:], sides, strict=True)):
        if count != n:
            taps, weights = whole_axis_taps(n, count, "bilinear")
            table = weighted_rows(table, taps.unsqueeze(0), weights.unsqueeze(0), axis=1 + axis)
    return table.movedim(-1, 1)
