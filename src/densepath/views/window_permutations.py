"""Permutations of the pixels of many windows, each of which reads the original image, and where pixels come from."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import lru_cache, reduce
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from densepath.core.random import split_mix

_CHUNK = 2**15  # positions in windows that a CPU processes at a time: they stay in its cache
_OVERLAP = 4  # windows per pixel from which it pays to find those that show
_TABLE = 2**20  # the largest table of all shapes of windows

Integers = npt.NDArray[Any]


def largest_window(share: float, size: Sequence[int]) -> list[int]:
    """Its sides in views of a size, in pixels."""
    return [max(1, math.floor(n * share + 1e-6)) for n in size]


def shuffled_positions(low: Tensor, side: Tensor, largest: Sequence[int], size: Sequence[int], seeds: Tensor) -> Tensor:
    """The position from which each pixel is taken: (n, pixels) int64, where the seeds are.

    The pixels of a window are sorted by random numbers, one for each position of each window. Windows read the
    original, so of two that overlap the later one counts.

    Args:
        low, side: (n, W, d) low corners and sides of the windows in their order, on the CPU.
        largest: no side is larger, one for each axis.
        size: of the views in pixels.
        seeds: (n,) int64 random bits, one for each view.
    """
    volume = reduce(torch.mul, side.unbind(-1))
    if seeds.device.type != "cpu":
        return _on_device(low, side, volume, largest, size, seeds)
    out = torch.empty(len(low), math.prod(size), dtype=torch.int64)
    for row in range(len(low)):
        shown = None
        if int(volume[row].sum()) > _OVERLAP * out.shape[1]:
            owners = last_windows(low[row : row + 1], side[row : row + 1], largest, size)
            shown = np.flatnonzero(np.bincount(owners.flatten().numpy(), minlength=1 + len(volume[row]))[1:])
        windows = tuple(each[row].numpy() for each in (low, side, volume))
        _on_host(windows, shown, largest, size, seeds[row], out[row].numpy())
    return out


def _on_host(
    windows: tuple[Integers, ...],
    shown: Integers | None,
    largest: Sequence[int],
    size: Sequence[int],
    seed: Tensor,
    out: Integers,
) -> None:
    """One view on a CPU: windows are written in their order, some at a time.

    Args:
        windows: their low corners and sides (W, d), and their volumes (W,).
        shown: the windows that show; None for all.
        largest, size, seed: as in :func:`shuffled_positions`.
        out: (pixels,), the result.
    """
    low, side, volume = windows
    place_bits, random_bits = _key_bits(len(low), largest)
    first = np.cumsum(volume) - volume  # of each window among all positions
    if shown is not None:
        low, side, volume, first = low[shown], side[shown], volume[shown], first[shown]
    base = sum(low[:, axis] * stride for axis, stride in enumerate(_strides(size).tolist()))
    table, row = _shape_tables(side, largest, size)
    ends = np.cumsum(volume)
    out[:] = np.arange(len(out))
    cuts = np.searchsorted(ends, np.arange(_CHUNK, ends[-1] + _CHUNK, _CHUNK), side="left") + 1
    start = 0
    for stop in np.minimum(cuts, len(volume)).tolist():
        if stop == start:
            continue
        some = slice(start, stop)
        count, begin = volume[some], ends[some] - volume[some]
        begin -= begin[0]
        # Each place is the number of its position minus where its window begins.
        position = np.arange(ends[stop - 1] - ends[start] + volume[start])
        number = split_mix(seed, torch.from_numpy(np.repeat(first[some] + 1 - begin, count) + position)).numpy()
        key = (number.view(np.uint64) >> np.uint64(64 - random_bits)).view(np.int64)
        key <<= place_bits
        key += np.repeat((np.arange(stop - start) << (place_bits + random_bits)) - begin, count)
        key += position
        key.sort()
        key &= 2**place_bits - 1
        key += np.repeat(row[some], count)
        position += np.repeat(row[some] - begin, count)
        of_window = np.repeat(base[some], count)
        # Where a pixel has several windows, the last value is the one that stays.
        out[table.take(position) + of_window] = table.take(key) + of_window
        start = stop


def _on_device(
    low: Tensor, side: Tensor, volume: Tensor, largest: Sequence[int], size: Sequence[int], seeds: Tensor
) -> Tensor:
    """All views (n, W, d) at once, without waiting for the device: sizes of tensors are computed on the CPU."""
    device, (count, windows, _) = seeds.device, low.shape
    pixels, total = math.prod(size), int(volume.sum())
    place_bits, random_bits = _key_bits(windows, largest)
    table, row = map(torch.from_numpy, _shape_tables(side.flatten(0, 1).numpy(), largest, size))
    base = (low * torch.from_numpy(_strides(size))).sum(-1).flatten()
    low, side, volume, table, row, base = (
        each.to(device, non_blocking=True) for each in (low, side, volume, table, row, base)
    )
    owner = last_windows(low, side, largest, size).view(count, -1)
    first = (volume.cumsum(1) - volume).flatten()  # of each window among the positions of its view
    begin = volume.flatten().cumsum(0) - volume.flatten()  # and among those of all
    which = torch.repeat_interleave(torch.arange(count * windows, device=device), volume.flatten(), output_size=total)
    place = torch.arange(total, device=device) - begin[which]
    view = which // windows
    number = split_mix(seeds[view], first[which] + place + 1)
    number = (number >> (64 - random_bits)) & (2**random_bits - 1)
    key = (((which << random_bits) | number) << place_bits) | place
    key = key.sort().values & (2**place_bits - 1)
    target, source = (table[row[which] + each] + base[which] for each in (place, key))
    # Positions that a later window covers are written behind the pixels.
    shows = owner.flatten()[view * pixels + target] == which % windows + 1
    out = torch.arange(pixels + 1, device=device).repeat(count, 1)
    return (
        out.view(-1)
        .scatter_(0, view * (pixels + 1) + torch.where(shows, target, pixels), source)
        .view_as(out)[:, :pixels]
    )


def _key_bits(windows: int, largest: Sequence[int]) -> tuple[int, int]:
    """Bits of a place in a window, and of the random numbers by which places are sorted."""
    places = (math.prod(largest) - 1).bit_length()
    return places, min(32, 63 - places - windows.bit_length())


def _strides(size: Sequence[int]) -> Integers:
    return np.array([math.prod(size[axis + 1 :]) for axis in range(len(size))])


def _shape_tables(side: Integers, largest: Sequence[int], size: Sequence[int]) -> tuple[Integers, Integers]:
    """How far each place of a window lies from its low corner, for one shape of windows after another; and where the
    shape of each window (W, d) starts."""
    strides = _strides(largest)
    number = sum((side[:, axis] - 1) * stride for axis, stride in enumerate(strides.tolist()))
    if math.prod(n * (n + 1) // 2 for n in largest) <= _TABLE:
        table, starts = _all_shapes(tuple(largest), tuple(size))
        return table, starts[number]
    present, inverse = np.unique(number, return_inverse=True)
    table, starts = _offsets(1 + present[:, None] // strides % np.array(largest), size)
    return table, starts[inverse]


@lru_cache(maxsize=8)
def _all_shapes(largest: tuple[int, ...], size: tuple[int, ...]) -> tuple[Integers, Integers]:
    return _offsets(np.indices(largest).reshape(len(largest), -1).T + 1, size)


def _offsets(sides: Integers, size: Sequence[int]) -> tuple[Integers, Integers]:
    """The table of :func:`_shape_tables` for shapes (S, d), and where each of them starts."""
    volume = sides.prod(1)
    starts = np.cumsum(volume) - volume
    rest = np.arange(volume.sum()) - np.repeat(starts, volume)
    table = np.zeros_like(rest)
    for axis, stride in reversed(list(enumerate(_strides(size)))):
        rest, inner = np.divmod(rest, np.repeat(sides[:, axis], volume))
        table += stride * inner
    return table, starts


def last_windows(low: Tensor, side: Tensor, largest: Sequence[int], size: Sequence[int]) -> Tensor:
    """The number, from 1, of the last window that covers each pixel: (n, *size) int32, 0 where none does.

    A window is the union of 2**d overlapping blocks with sides of powers of two. Each block is marked at its low corner
    in the table of its sides; tables of large blocks are passed on to those of half their side.

    Args:
        low, side: (n, W, d).
        largest: no side is larger, one for each axis.
        size: of the views in pixels.
    """
    count, windows, d = low.shape
    of_side = torch.tensor([max(0, n.bit_length() - 1) for n in range(max(largest) + 1)])
    low, side = (each.movedim(-1, 0).contiguous() for each in (low, side))  # (d, n, W)
    flat = side.flatten()
    level = of_side.to(low.device, non_blocking=True).index_select(0, flat).view_as(side)  # the logarithm of a block
    block = (2**of_side).to(low.device, non_blocking=True).index_select(0, flat).view_as(side)  # block <= side
    levels = [n.bit_length() for n in largest]
    table = torch.zeros(count, *levels, *size, dtype=torch.int32, device=low.device)
    number = torch.arange(1, windows + 1, dtype=torch.int32, device=low.device).expand(count, -1)
    strides = [math.prod([*levels[axis + 1 :], *size]) for axis in range(d)]
    places = [math.prod(size[axis + 1 :]) for axis in range(d)]
    base = reduce(torch.add, [level[axis] * strides[axis] for axis in range(d)])
    ends = [(low[axis] * places[axis], (low[axis] + side[axis] - block[axis]) * places[axis]) for axis in range(d)]
    for corners in itertools.product(*ends):
        table.view(count, -1).scatter_reduce_(1, reduce(torch.add, corners, base), number, "amax")
    for axis in range(d):
        while table.shape[1] > 1:  # levels of this axis
            top, half = table[:, -1], 2 ** (table.shape[1] - 2)
            below, n = table[:, -2], size[axis]
            torch.maximum(below, top, out=below)
            target = below.narrow(d, half, n - half)  # levels before this axis are gone: its pixels are axis d
            torch.maximum(target, top.narrow(d, 0, n - half), out=target)
            table = table[:, :-1]
        table = table[:, 0]
    return table
