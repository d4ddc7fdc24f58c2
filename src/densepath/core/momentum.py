"""The momentum (EMA) copy of a network."""

from __future__ import annotations

import copy
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from densepath.core.distributed import local

Network = TypeVar("Network", bound=nn.Module)


class Momentum(nn.Module, Generic[Network]):
    """A copy whose parameters follow a network's as an exponential moving average.

    Only parameters follow: each network keeps its own batch-norm statistics, as in MoCo.

    Args:
        network: the network to copy and to follow.
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network: Network = copy.deepcopy(network).requires_grad_(False)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.network(*args, **kwargs)

    @torch.no_grad()
    def update(self, source: Network, momentum: float) -> None:
        """slow = momentum * slow + (1 - momentum) * fast, in one fused operation over all parameters.

        If both are sharded over processes, they are so in the same way, and each process updates its own part.
        """
        slow: list[Tensor] = [local(parameter) for parameter in self.network.parameters()]
        fast = [local(parameter.detach()) for parameter in source.parameters()]
        torch._foreach_lerp_(slow, fast, 1.0 - momentum)
