"""Training and evaluation mode, left as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def preserve_mode(network: nn.Module) -> Iterator[None]:
    """What is done inside may set parts of a network to training or evaluation mode; each goes back to its own."""
    modes = [(part, part.training) for part in network.modules()]
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode
