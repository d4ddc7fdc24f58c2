"""Losses: pure functions of tensors, computed in float32 (float64 for float64 inputs), also under autocast."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from densepath.core.distributed import gather, gather_with_gradient, mean, rank, total
from densepath.core.errors import UserError


def full_precision(x: Tensor) -> Tensor:
    """A floating-point tensor in float32, or in float64 if it is float64 already."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def info_nce(
    query: Tensor, positive: Tensor, negatives: Tensor, temperature: float, mask: Tensor | None = None
) -> Tensor:
    """InfoNCE with a queue of negatives: -log(exp(q k+ / t) / (exp(q k+ / t) + sum exp(q k- / t))).

    Args:
        query: (N, D) unit vectors.
        positive: (N, D) the key of each query.
        negatives: (M, D) keys of other images, at least one.
        temperature: t.
        mask: (N,) bool: the queries to use; all by default.

    Returns:
        (N,) one loss per query; any finite value for a query that is not used.

    Raises:
        UserError: there are no negatives.

    Source: ConCL (ECCV 2022), Equations 1 and 2; MoCo (CVPR 2020), Equation 1.
    """
    if not len(negatives):
        raise UserError("InfoNCE needs at least one negative, and negatives has no rows; give keys of other images")
    with torch.autocast(query.device.type, enabled=False):
        query, positive, negatives = (full_precision(x) for x in (query, positive, negatives))
        if mask is not None and mask.device.type == "cpu":  # where counting them needs no synchronization
            losses = info_nce(query[mask], positive[mask], negatives, temperature)
            return torch.zeros_like(query[:, 0]).masked_scatter(mask, losses)
        query = query / temperature
        own = (query * positive).sum(-1)
        return torch.logaddexp(own, _logsumexp(query @ negatives.T)) - own


def _logsumexp(x: Tensor) -> Tensor:
    """logsumexp of each row of (N, M) with torch's log_softmax: one pass, where torch.logsumexp takes four."""
    return x[:, 0] - x.log_softmax(1)[:, 0]


def nt_xent(first: Tensor, second: Tensor, temperature: float, mask: Tensor | None = None) -> Tensor:
    """NT-Xent: contrasts each view with the other view of its image, among all views of all processes.

    Args:
        first, second: (B, D) unit vectors, the two views of this process's images; B is equal on all processes.
        temperature: temperature of the softmax.
        mask: (B,) bool: the images to use; all by default. The views of the others are no negatives either.

    Returns:
        A scalar, the mean over this process's 2B views, or those in use (see :func:`masked_mean`). Its gradient reaches
        the views of the other processes: the average of all processes' gradients is that of the mean over the global
        batch.

    Source: SimCLR (ICML 2020), Equation 1.
    """
    with torch.autocast(first.device.type, enabled=False):
        views = torch.stack((full_precision(first), full_precision(second)), dim=1).flatten(0, 1)  # pairs are adjacent
        own = rank() * len(views) + torch.arange(len(views), device=views.device)
        logits = views @ gather_with_gradient(views).T / temperature
        logits = logits.scatter(1, own.unsqueeze(1), -torch.inf)
        if mask is None:
            return F.cross_entropy(logits, own ^ 1)
        used = mask.repeat_interleave(2)
        other = torch.arange(logits.shape[1], device=views.device) == (own ^ 1).unsqueeze(1)
        logits = logits.masked_fill(~gather(used) & ~other, -torch.inf)  # with the other view no row is empty
        return masked_mean(F.cross_entropy(logits, own ^ 1, reduction="none"), used)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """The mean of the selected values over all processes; zero, with zero gradient, if none is selected.

    Processes may have different numbers of values. Each divides its sum by the *average* number, so that the average of
    the processes' gradients in data-parallel training is the gradient of the mean over the global batch.

    Args:
        values: (N,) floats.
        mask: (N,) bool.
    """
    values = full_precision(values)
    count = mean(mask.sum().to(values.dtype))
    return torch.where(mask, values, 0.0).sum() / count.clamp(min=1e-6)


def standardize(x: Tensor, mask: Tensor | None = None) -> Tensor:
    """Scale each column to mean 0 and variance 1 over the selected rows, like a batch norm without parameters.

    The rows are those of all processes, and gradients flow through their statistics.

    Args:
        x: (N, D) floats.
        mask: (N,) bool: rows for the statistics; all by default. The others are transformed in the same way.
    """
    with torch.autocast(x.device.type, enabled=False):
        x = full_precision(x)
        weight = x.new_ones(len(x)) if mask is None else mask.to(x.dtype)
        weight = weight / total(weight.sum()).clamp(min=1)
        centered = x - total(weight @ x)
        return centered * torch.rsqrt(total(weight @ centered**2) + 1e-5)
