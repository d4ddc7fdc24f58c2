"""Losses: pure functions of tensors, computed in float32 (float64 for float64) whatever the precision around them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from densepath.core.distributed import gather_with_gradient, mean, rank, total


def full_precision(x: Tensor) -> Tensor:
    """A tensor of floats in float32, or in float64 if it is so already."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def info_nce(
    query: Tensor, positive: Tensor, negatives: Tensor, temperature: float, mask: Tensor | None = None
) -> Tensor:
    """InfoNCE with a queue of negatives: -log(exp(q k+ / t) / (exp(q k+ / t) + sum exp(q k- / t))).

    Args:
        query: (N, D) unit vectors.
        positive: (N, D) the key of each query.
        negatives: (M, D) keys that belong to none of the queries.
        temperature: t.
        mask: (N,) bool: the queries that count; all of them by default.

    Returns:
        (N,) one loss for each query; anything finite for one that does not count.

    Source: ConCL (ECCV 2022), Equations 1 and 2; MoCo (CVPR 2020), Equation 1.
    """
    with torch.autocast(query.device.type, enabled=False):
        query, positive, negatives = (full_precision(x) for x in (query, positive, negatives))
        if mask is not None and mask.device.type == "cpu":  # where to ask how many these are costs nothing
            losses = info_nce(query[mask], positive[mask], negatives, temperature)
            return torch.zeros_like(query[:, 0]).masked_scatter(mask, losses)
        query = query / temperature
        own = (query * positive).sum(-1)
        return torch.logaddexp(own, _logsumexp(query @ negatives.T)) - own


def _logsumexp(x: Tensor) -> Tensor:
    """log sum exp of each row of (N, M), by torch's log_softmax: one pass where its own takes four."""
    return x[:, 0] - x.log_softmax(1)[:, 0]


def nt_xent(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """NT-Xent: each view of an image against its other view, among all other views of the images of all processes.

    Args:
        first, second: (B, D) unit vectors, the two views of this process's images; B alike on all processes.
        temperature: of the contrast.

    Returns:
        A scalar, the mean over this process's 2B views. Its gradient reaches the views of the other processes: the
        average of all processes' gradients is that of the mean over the global batch.

    Source: SimCLR (ICML 2020), Equation 1.
    """
    with torch.autocast(first.device.type, enabled=False):
        views = torch.stack((full_precision(first), full_precision(second)), dim=1).flatten(0, 1)  # pairs side by side
        own = rank() * len(views) + torch.arange(len(views), device=views.device)
        logits = views @ gather_with_gradient(views).T / temperature
        return F.cross_entropy(logits.scatter(1, own.unsqueeze(1), -torch.inf), own ^ 1)


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

    The rows are those of all processes, and gradients flow through their statistics.

    Args:
        x: (N, D) floats.
        mask: (N,) bool: which rows count; all of them by default. The others are shifted and scaled alike.
    """
    with torch.autocast(x.device.type, enabled=False):
        x = full_precision(x)
        weight = x.new_ones(len(x)) if mask is None else mask.to(x.dtype)
        weight = weight / total(weight.sum()).clamp(min=1)
        centered = x - total(weight @ x)
        return centered * torch.rsqrt(total(weight @ centered**2) + 1e-5)
