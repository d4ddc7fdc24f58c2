"""Block-wise masks over a view's grid of square patches."""

from __future__ import annotations

import math

import torch
from torch import Tensor

ATTEMPTS = 40  # total attempts per image; about one image in 4000 would need more
_TRIES = 10  # consecutive failures after which an image gets no more blocks
_ASPECT = 0.3  # minimum height / width of a block; the maximum is its inverse


def count_draws(patches: int) -> int:
    """Number of random numbers for the mask of one image."""
    return patches + 4 * ATTEMPTS


def block_masks(draws: Tensor, grid: int, count: int | Tensor, smallest: int = 16) -> Tensor:
    """Masks of rectangles, each with exactly ``count`` patches.

    Rectangles are added one after another. The area of each is drawn between ``smallest`` and the number of missing
    patches, the logarithm of its aspect ratio uniformly, then its position. A rectangle that would mask too many
    patches, or no new one, is rejected. After ten consecutive rejections random patches fill the rest.

    All images are processed at once, on the CPU, where their random numbers are; there is no synchronization.

    Args:
        draws: (B, count_draws(grid * grid)) numbers in [0, 1), on the CPU: ``Batch.uniform`` for masks that depend only
            on image and epoch.
        grid: patches along a side.
        count: number of patches to mask, or (B,) int64 those of each image.
        smallest: minimum area of a rectangle, limited by ``count``.

    Returns:
        (B, grid * grid) bool, true where a patch is masked.

    Source: BEiT (ICLR 2022), Algorithm 1, and its released code, which BEiT-v2 shares.
    """
    patches, b = grid * grid, len(draws)
    order, blocks = draws[:, :patches], draws[:, patches:].view(b, ATTEMPTS, 4).double()
    mask = torch.zeros(b, grid, grid, dtype=torch.bool)
    missing = torch.as_tensor(count).expand(b).clone()
    least = missing.clamp(max=smallest)
    failures = torch.zeros(b, dtype=torch.int64)
    for attempt in blocks.unbind(1):
        rows = ((missing > 0) & (failures < _TRIES)).nonzero().flatten()
        if not len(rows):
            break
        block = _draw_blocks(attempt[rows], grid, least[rows], missing[rows])
        old = mask[rows]
        new = (block & ~old).sum((1, 2))
        fits = (new > 0) & (new <= missing[rows])
        mask[rows] = old | (block & fits.view(-1, 1, 1))
        missing[rows] -= new * fits
        failures[rows] = torch.where(fits, 0, failures[rows] + 1)
    mask = mask.flatten(1)
    ranks = order.masked_fill(mask, 1.0).argsort(dim=1, stable=True).argsort(dim=1)
    return mask | (ranks < missing.unsqueeze(1))


def _draw_blocks(draws: Tensor, grid: int, smallest: Tensor, missing: Tensor) -> Tensor:
    """Rectangles (B, grid, grid) bool from draws (B, 4); empty if a side would be as long as the grid."""
    area, aspect, down, right = draws.unbind(1)
    area = smallest + area * (missing - smallest)
    aspect = torch.exp(math.log(_ASPECT) * (1 - 2 * aspect))
    lengths = torch.stack((area * aspect, area / aspect), dim=1).sqrt().round()  # (B, 2): height and width
    lengths = lengths * (lengths < grid).all(1, keepdim=True)
    starts = (torch.stack((down, right), dim=1) * (grid - lengths + 1)).floor()
    positions = torch.arange(grid)
    inside = (positions >= starts.unsqueeze(2)) & (positions < (starts + lengths).unsqueeze(2))  # (B, 2, grid)
    return inside[:, 0].unsqueeze(2) & inside[:, 1].unsqueeze(1)
