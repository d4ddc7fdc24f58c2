"""Exact local shuffling of pixels in thousands of windows, without a loop over them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from densepath.core.errors import UserError
from densepath.views.appearance import change, check_probability, chosen
from densepath.views.corruptions import Corruption
from densepath.views.random_streams import Draw, Stream
from densepath.views.window_permutations import largest_window, shuffled_positions

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
            seeds = draw.seeds(rows, Stream.SHUFFLE_PIXELS, part.device)
            source = shuffled_positions(*windows, largest_window(self.share, size), size, seeds)
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
    # One axis after another: the numbers of each lie together in memory.
    first, second = numbers.view(len(rows), windows, 2, d).permute(2, 3, 0, 1).contiguous()
    side = 1 + (first * torch.tensor(largest_window(share, size)).view(-1, 1, 1)).long()
    low = (second * (torch.tensor(size).view(-1, 1, 1) - side + 1)).long()
    return low.movedim(0, -1), side.movedim(0, -1)
