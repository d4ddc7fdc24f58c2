"""Block-wise masks over a view's grid of square patches."""

from __future__ import annotations

import math

import torch
from torch import Tensor

ATTEMPTS = 40  # blocks that are tried for an image in all; about one image in 4000 would have more
_TRIES = 10  # in a row that may fail before an image gets no further block
_ASPECT = 0.3  # the flattest block: height / width; the tallest has its inverse


def count_draws(patches: int) -> int:
    """Random numbers that the mask of one image takes."""
    return patches + 4 * ATTEMPTS


def block_masks(draws: Tensor, grid: int, count: int, smallest: int = 16) -> Tensor:
    """Masks made of rectangles, each of ``count`` patches exactly.

    Rectangles are put down one after another. The area of each is drawn between ``smallest`` and the number of patches
    that are still missing, the logarithm of its aspect ratio evenly, then its place. One that would mask too many
    patches, or no new one, is drawn again. After ten that fail in a row, patches anywhere take the place of what is
    missing.

    All images are handled at once, on the CPU, as their numbers are drawn there; nothing asks another device.

    Args:
        draws: (B, count_draws(grid * grid)) numbers in [0, 1), on the CPU: ``Batch.uniform`` for masks that depend on
            image and epoch alone.
        grid: patches along a side.
        count: patches to mask.
        smallest: see above; at most ``count`` is meant.

    Returns:
        (B, grid * grid) bool, true where a patch is masked.

    Source: BEiT (ICLR 2022), Algorithm 1, and its released code, which BEiT-v2 shares.
    """
    patches, b = grid * grid, len(draws)
    order, blocks = draws[:, :patches], draws[:, patches:].view(b, ATTEMPTS, 4).double()
    smallest = min(smallest, count)
    mask = torch.zeros(b, grid, grid, dtype=torch.bool)
    missing = torch.full((b,), count)
    failures = torch.zeros(b, dtype=torch.int64)
    for attempt in blocks.unbind(1):
        rows = ((missing > 0) & (failures < _TRIES)).nonzero().flatten()
        if not len(rows):
            break
        block = _draw_blocks(attempt[rows], grid, smallest, missing[rows])
        old = mask[rows]
        new = (block & ~old).sum((1, 2))
        fits = (new > 0) & (new <= missing[rows])
        mask[rows] = old | (block & fits.view(-1, 1, 1))
        missing[rows] -= new * fits
        failures[rows] = torch.where(fits, 0, failures[rows] + 1)
    mask = mask.flatten(1)
    ranks = order.masked_fill(mask, 1.0).argsort(dim=1, stable=True).argsort(dim=1)
    return mask | (ranks < missing.unsqueeze(1))


def _draw_blocks(draws: Tensor, grid: int, smallest: int, missing: Tensor) -> Tensor:
    """Rectangles (B, grid, grid) bool from draws (B, 4); an empty one where it would be as long as the grid."""
    area, aspect, down, right = draws.unbind(1)
    area = smallest + area * (missing - smallest)
    aspect = torch.exp(math.log(_ASPECT) * (1 - 2 * aspect))
    lengths = torch.stack((area * aspect, area / aspect), dim=1).sqrt().round()  # (B, 2): height and width
    lengths = lengths * (lengths < grid).all(1, keepdim=True)
    starts = (torch.stack((down, right), dim=1) * (grid - lengths + 1)).floor()
    cells = torch.arange(grid)
    inside = (cells >= starts.unsqueeze(2)) & (cells < (starts + lengths).unsqueeze(2))  # (B, 2, grid)
    return inside[:, 0].unsqueeze(2) & inside[:, 1].unsqueeze(1)
