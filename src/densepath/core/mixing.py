"""Mixing of images and of features."""

from __future__ import annotations

import torch
from torch import Tensor


def beta(uniform: Tensor, alpha: float) -> Tensor:
    """Numbers of the distribution Beta(alpha, alpha), from uniform ones, on the CPU.

    Args:
        uniform: numbers in [0, 1), of any shape.
        alpha: above 0.
    """
    if alpha == 1:
        return uniform
    from scipy.special import betaincinv

    return torch.as_tensor(betaincinv(alpha, alpha, uniform.double().numpy())).to(uniform.dtype)


def mix(share: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """share * first + (1 - share) * second, with a share (B,), on the CPU, for each row of (B, ...)."""
    share = share.to(first.device, first.dtype, non_blocking=True)
    return torch.lerp(second, first, share.view(-1, *[1] * (first.ndim - 1)))
