"""Losses: pure functions of tensors, computed in float32 whatever the precision around them."""

from __future__ import annotations

import torch
from torch import Tensor

from densepath.core.distributed import mean


def info_nce(query: Tensor, positive: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    """InfoNCE with a queue of negatives: -log(exp(q k+ / t) / (exp(q k+ / t) + sum exp(q k- / t))).

    Args:
        query: (N, D) unit vectors.
        positive: (N, D) the key of each query.
        negatives: (M, D) keys that belong to none of the queries.
        temperature: t.

    Returns:
        (N,) one loss for each query.

    Source: ConCL (ECCV 2022), Equations 1 and 2; MoCo (CVPR 2020), Equation 1.
    """
    with torch.autocast(query.device.type, enabled=False):
        query, positive, negatives = query.float(), positive.float(), negatives.float()
        own = (query * positive).sum(-1) / temperature
        others = (query @ negatives.T) / temperature
        return torch.logaddexp(own, others.logsumexp(-1)) - own


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """The mean of the values that count, over all processes: zero, with a gradient of zero, where none does.

    Processes hold different numbers of values. Each divides its sum by the *average* number, so that the average of the
    processes' gradients, which data-parallel training takes, is the gradient of the mean over the global batch.

    Args:
        values: (N,) floats.
        mask: (N,) bool.
    """
    count = mean(mask.sum().to(values.dtype))
    return torch.where(mask, values, 0.0).sum() / count.clamp(min=1e-6)


def standardize(x: Tensor, mask: Tensor | None = None) -> Tensor:
    """Give each column mean 0 and variance 1 over the rows that count, as a batch norm without parameters does.

    Args:
        x: (N, D) floats.
        mask: (N,) bool: which rows count; all of them by default. The others are shifted and scaled alike.
    """
    weight = x.new_ones(len(x)) if mask is None else mask.to(x.dtype)
    weight = weight / weight.sum().clamp(min=1)
    centered = x - weight @ x
    return centered * torch.rsqrt(weight @ centered**2 + 1e-5)
