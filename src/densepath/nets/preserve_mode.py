"""Restoring training and evaluation mode."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def preserve_mode(network: nn.Module) -> Iterator[None]:
    """Restore the training or evaluation mode of each module of a network at the end of the block."""
    modes = [(part, part.training) for part in network.modules()]
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode
