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

_POSITIONS = 2**23  # in all windows of the views that are shuffled at once: 64 MiB for each tensor of them


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
        size = x.shape[2:]

        def shuffle(part: Tensor, rows: list[int]) -> Tensor:
            positions = self.windows * math.prod((n + 1) / 2 for n in largest_window(self.share, size))
            some = max(1, int(_POSITIONS / max(positions, 8 * math.prod(size))))  # tables too
            starts = range(0, len(rows), some)
            return torch.cat([shuffled(part[start : start + some], rows[start : start + some]) for start in starts])

        def shuffled(part: Tensor, rows: list[int]) -> Tensor:
            windows = shuffle_windows(draw, rows, self.windows, self.share, size)
            source = shuffled_positions(*windows, self.share, size, draw, rows, part.device)
            flat = part.flatten(2)
            return flat.gather(2, source.unsqueeze(1).expand_as(flat)).view(part.shape)

        change(x, chosen(draw, Stream.LOCAL_SHUFFLE, self.probability), shuffle)
        return x


def shuffle_windows(
    draw: Draw, rows: Sequence[int], windows: int, share: float, size: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Low corners and sides (n, W, d) of the windows of some rows, in their order, on the CPU."""
    d = len(size)
    numbers = draw.pixels(rows, windows * 2 * d, torch.device("cpu"), Stream.SHUFFLE_WINDOWS)
    first, second = numbers.view(len(rows), windows, 2, d).unbind(2)
    side = 1 + (first * torch.tensor(largest_window(share, size))).long()
    return (second * (torch.tensor(size) - side + 1)).long(), side


def largest_window(share: float, size: Sequence[int]) -> list[int]:
    """Its sides in views of a size, in pixels."""
    return [max(1, math.floor(n * share + 1e-6)) for n in size]


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
    level = (side.double().log2() + 1e-9).floor().long()  # 2**level <= side < 2**(level + 1)
    levels = [n.bit_length() for n in largest]
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
            top, half = table[:, -1], 2 ** (table.shape[1] - 2)
            below, n = table[:, -2], size[axis]
            torch.maximum(below, top, out=below)
            target = below.narrow(d, half, n - half)  # levels before this axis are gone: its pixels are axis d
            torch.maximum(target, top.narrow(d, 0, n - half), out=target)
            table = table[:, :-1]
        table = table[:, 0]
    return table


def shuffled_positions(
    low: Tensor,
    side: Tensor,
    share: float,
    size: Sequence[int],
    draw: Draw,
    rows: Sequence[int],
    device: torch.device,
) -> Tensor:
    """(n, pixels) int64 on a device: the position from which each pixel is taken.

    Args:
        low, side: (n, W, d) the windows, on the CPU.
        share: largest side of a window, as a share of the view's.
        size: of the views in pixels.
        draw: the random numbers; each window has four for every four pixels.
        rows: the rows of the views.
        device: where to compute.
    """
    count, windows, d = low.shape
    pixels, largest = math.prod(size), largest_window(share, size)
    # What decides on the sizes of tensors is computed on the CPU: nothing waits for the device.
    total = int(((side.prod(-1) + 3) // 4).sum())
    low, side = low.to(device, non_blocking=True), side.to(device, non_blocking=True)
    window = last_windows(low, side, largest, size).view(count, -1).long() - 1  # (n, pixels)
    covered = window >= 0
    owner = torch.where(covered, window + windows * torch.arange(count, device=device).unsqueeze(1), 0)
    low, side = low.reshape(-1, d), side.reshape(-1, d)
    volume = side.prod(-1)
    if device.type == "cpu":  # other windows need no numbers; elsewhere counting them would wait for the device
        used = torch.zeros(count * windows, dtype=torch.bool).index_fill_(0, owner[covered], True)
        volume = torch.where(used, volume, 0)
    # A permutation of each window: its positions sorted by random numbers.
    quads = (volume + 3) // 4
    total = int(quads.sum()) if device.type == "cpu" else total
    which = torch.repeat_interleave(torch.arange(count * windows, device=device), quads, output_size=total)
    first_quad = quads.cumsum(0) - quads
    quad = torch.arange(total, device=device) - first_quad[which]
    most = -(-math.prod(largest) // 4)
    index, view = (numbers[list(rows)].to(device)[which // windows] for numbers in (draw.index, draw.view))
    streams = Stream.SHUFFLE_PIXELS + which % windows * most + quad
    words = bits(draw.seed, draw.epoch, index, view, streams)
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
