"""Exact local shuffling of pixels in thousands of windows, without a loop over them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from densepath.core.errors import UserError
from densepath.core.random import bits
from densepath.views.appearance import change, check_probability, chosen
from densepath.views.corruptions import Corruption
from densepath.views.random_streams import Draw, Stream


@dataclass(frozen=True)
class LocalShuffle(Corruption):
    """The pixels of many small windows are shuffled within each window, one window after the other.

    Windows read the original image, so only the last window that covers a pixel counts. All channels of a pixel move
    together.

    Args:
        probability: of shuffling.
        windows: their number.
        share: largest side of a window, as a share of the view's; sides are uniform from one pixel to that.

    Source: Zhou et al., Models Genesis, MICCAI 2019; as in the released code.
    """

    probability: float = 0.5
    windows: int = 10_000
    share: float = 0.1

    def __post_init__(self) -> None:
        check_probability("the probability of a local shuffle", self.probability)
        if self.windows < 1 or not 0 < self.share <= 1:
            raise UserError(f"a local shuffle needs windows of a share of the view, not {self.windows} of {self.share}")

    def apply(self, x: Tensor, draw: Draw) -> Tensor:
        def shuffle(part: Tensor, rows: list[int]) -> Tensor:
            low, side = shuffle_windows(draw, rows, self.windows, self.share, part.shape[2:])
            low, side = low.to(part.device, non_blocking=True), side.to(part.device, non_blocking=True)
            source = shuffled_positions(low, side, part.shape[2:], draw, rows)
            flat = part.flatten(2)
            return flat.gather(2, source.unsqueeze(1).expand_as(flat)).view(part.shape)

        change(x, chosen(draw, Stream.LOCAL_SHUFFLE, self.probability), shuffle)
        return x


def shuffle_windows(
    draw: Draw, rows: Sequence[int], windows: int, share: float, size: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Low corners and sides (n, W, d) of the windows of some rows, in their order, on the CPU."""
    d, extent = len(size), torch.tensor(size)
    numbers = draw.pixels(rows, windows * 2 * d, torch.device("cpu"), Stream.SHUFFLE_WINDOWS)
    first, second = numbers.view(len(rows), windows, 2, d).unbind(2)
    side = 1 + (first * (extent * share + 1e-6).long().clamp(min=1)).long()
    return (second * (extent - side + 1)).long(), side


def last_windows(low: Tensor, side: Tensor, size: Sequence[int]) -> Tensor:
    """The number, from 1, of the last window that covers each pixel: (n, *size) int32, 0 where none does.

    A window is the union of 2**d overlapping blocks with sides of powers of two. Each block is marked at its low corner
    in the table of its sides; tables of large blocks are passed on to those of half their side.

    Args:
        low, side: (n, W, d).
        size: of the views in pixels.
    """
    count, windows, d = low.shape
    level = (side.double().log2() + 1e-9).floor().long()  # 2**level <= side < 2**(level + 1)
    levels = [math.floor(math.log2(max(1, int(side[..., axis].max())))) + 1 for axis in range(d)]
    table = torch.zeros(count, *levels, *size, dtype=torch.int32, device=low.device)
    number = torch.arange(1, windows + 1, dtype=torch.int32, device=low.device).expand(count, -1)
    base = torch.zeros_like(level[..., 0])
    for axis in range(d):
        base = base * levels[axis] + level[..., axis]
    for ends in itertools.product((False, True), repeat=d):
        flat = base
        for axis in range(d):
            corner = low[..., axis]
            corner = corner + side[..., axis] - 2 ** level[..., axis] if ends[axis] else corner
            flat = flat * size[axis] + corner
        table.view(count, -1).scatter_reduce_(1, flat, number, "amax")
    for axis in range(d):
        while table.shape[1] > 1:  # levels of this axis
            largest, half = table[:, -1], 2 ** (table.shape[1] - 2)
            below, n = table[:, -2], size[axis]
            torch.maximum(below, largest, out=below)
            target = below.narrow(d, half, n - half)  # levels before this axis are gone: its pixels are axis d
            torch.maximum(target, largest.narrow(d, 0, n - half), out=target)
            table = table[:, :-1]
        table = table[:, 0]
    return table


def shuffled_positions(low: Tensor, side: Tensor, size: Sequence[int], draw: Draw, rows: Sequence[int]) -> Tensor:
    """(n, pixels) int64: the position from which each pixel is taken.

    Args:
        low, side: (n, W, d) the windows.
        size: of the views in pixels.
        draw: the random numbers; each window has four for every four pixels.
        rows: the rows of the views.
    """
    count, windows, d = low.shape
    device, pixels = low.device, math.prod(size)
    window = last_windows(low, side, size).view(count, -1).long() - 1  # (n, pixels)
    covered = window >= 0
    owner = torch.where(covered, window + windows * torch.arange(count, device=device).unsqueeze(1), 0)
    low, side = low.reshape(-1, d), side.reshape(-1, d)
    volume = side.prod(-1)
    if device.type == "cpu":  # other windows need no numbers; elsewhere counting them would wait for the device
        used = torch.zeros(count * windows, dtype=torch.bool).index_fill_(0, owner[covered], True)
        volume = torch.where(used, volume, 0)
    # A permutation of each window: its positions sorted by random numbers.
    quads = (volume + 3) // 4
    total = int(quads.sum())
    which = torch.repeat_interleave(torch.arange(count * windows, device=device), quads, output_size=total)
    first_quad = quads.cumsum(0) - quads
    quad = torch.arange(total, device=device) - first_quad[which]
    most = -(-int(side.prod(-1).max()) // 4)
    row = torch.tensor(list(rows), device=draw.index.device)[(which // windows).to(draw.index.device)]
    streams = Stream.SHUFFLE_PIXELS + which % windows * most + quad
    words = bits(draw.seed, draw.epoch, draw.index[row].to(device), draw.view[row].to(device), streams)
    place = quad.unsqueeze(1) * 4 + torch.arange(4, device=device)
    # Positions of the last four that the window does not have come last.
    key = (which.unsqueeze(1) << 33) | ((place >= volume[which].unsqueeze(1)).long() << 32) | words
    order = key.flatten().argsort(stable=True)
    # Where each pixel lies in its window, and what the permutation has there.
    coordinates = torch.stack(torch.unravel_index(torch.arange(pixels, device=device), tuple(size)), dim=-1)
    inner, sides = torch.zeros_like(owner), side[owner]
    offset = coordinates - low[owner]
    for axis in range(d):
        inner = inner * sides[..., axis] + offset[..., axis]
    start = 4 * first_quad[owner]
    inner = order[torch.where(covered, start + inner, 0)] - start
    source, factor = torch.zeros_like(owner), 1
    for axis in reversed(range(d)):
        source += factor * (low[owner][..., axis] + inner % sides[..., axis])
        inner, factor = inner // sides[..., axis], factor * size[axis]
    return torch.where(covered, source, torch.arange(pixels, device=device))
