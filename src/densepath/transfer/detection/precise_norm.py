"""Precise batch norm: statistics averaged over many training batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

T = TypeVar("T")


@torch.no_grad()
def precise_batch_norm(model: nn.Module, batches: Iterable[T], forward: Callable[[T], object]) -> None:
    """Replace the running statistics of every batch norm by the mean of the batches' own statistics.

    The running average of training is dominated by the last batches, each computed with other weights.

    Args:
        model: its batch norms are changed in place; its mode is restored.
        batches: training batches.
        forward: runs the part of the model that has batch norms on one batch.

    Source: Wu and Johnson, "Rethinking 'Batch' in BatchNorm", 2021, section 3.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    momentum = [norm.momentum for norm in norms]
    training = model.training
    model.train()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average
    for batch in batches:
        forward(batch)
    for norm, before in zip(norms, momentum, strict=True):
        norm.momentum = before
    model.train(training)
