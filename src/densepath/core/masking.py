"""Masks over a view's grid of square patches, and the patches' pixels as targets."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from densepath.core.errors import UserError


def count_visible(patches: int, ratio: float) -> int:
    """The number of patches of a view that stay visible: the share that is not masked, rounded.

    Args:
        patches: number of patches of a view.
        ratio: the share that is masked.

    Raises:
        UserError: the ratio is not between 0 and 1, or no patch would be visible, or none masked.
    """
    if not 0 < ratio < 1:
        raise UserError(f"the mask ratio is a share between 0 and 1, not {ratio}")
    visible = round(patches * (1 - ratio))
    if not 0 < visible < patches:
        raise UserError(
            f"a mask ratio of {ratio} leaves {visible} of {patches} patches visible; a mask needs visible and masked "
            "patches, so choose another ratio or larger views"
        )
    return visible


def patches_along(size: Sequence[int], patch: int) -> tuple[int, ...]:
    """Patches along each axis of a view; sizes in pixels.

    Raises:
        UserError: the patches do not divide the view.
    """
    for side in size:
        if side % patch or side < patch:
            raise UserError(
                f"view_size {side} is not a multiple of the patch size of {patch} px; use e.g. "
                f"{max(1, side // patch) * patch}"
            )
    return tuple(side // patch for side in size)


def square_grid(size: Sequence[int], patch: int) -> int:
    """Patches along each side of a square view; sizes in pixels.

    Raises:
        UserError: the view is not a square, or the patches do not divide it.
    """
    if len(size) != 2 or size[0] != size[1]:
        raise UserError(
            f"patches are masked in square views of images, not in {' x '.join(map(str, size))} px; make the sides of "
            "view_size equal"
        )
    return patches_along(size, patch)[0]


def random_visible(noise: Tensor, visible: int) -> Tensor:
    """Which patches of each view are visible: those with the smallest noise.

    Args:
        noise: (B, N) floats, one for each patch; ``Batch.uniform(N)`` for masks that depend only on image
            and epoch.
        visible: number of visible patches, below N.

    Returns:
        (B, N) bool.
    """
    mask = torch.zeros(noise.shape, dtype=torch.bool, device=noise.device)
    return mask.scatter_(1, noise.argsort(dim=1)[:, :visible], True)


def enlarge(grid: Tensor, size: int) -> Tensor:
    """Repeat the values of patches (B, h, h) over their positions: (B, 1, size, size); ``size`` is a multiple of h."""
    factor = size // grid.shape[-1]
    return grid.unsqueeze(1).repeat_interleave(factor, -2).repeat_interleave(factor, -1)


def to_patches(x: Tensor, patch: int) -> Tensor:
    """(B, C, H, W) as (B, N, patch * patch * C): patches row by row, in each patch the channels of a pixel adjacent."""
    b, c, h, w = x.shape
    x = x.reshape(b, c, h // patch, patch, w // patch, patch)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(b, -1, patch * patch * c)


def from_patches(patches: Tensor, patch: int, width: int) -> Tensor:
    """The inverse of :func:`to_patches`: (B, N, patch * patch * C) as (B, C, H, W), of views ``width`` patches wide."""
    b, n, length = patches.shape
    x = patches.reshape(b, n // width, width, patch, patch, length // patch**2)
    return x.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


def standardize_patches(patches: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Patches (B, N, D) with mean 0 and variance 1 each, and the mean and the deviation (B, N, 1) that undo it.

    Source: MAE (CVPR 2022), released code: the unbiased variance, plus 1e-6.
    """
    mean = patches.mean(-1, keepdim=True)
    deviation = (patches.var(-1, keepdim=True) + 1e-6).sqrt()
    return (patches - mean) / deviation, mean, deviation
