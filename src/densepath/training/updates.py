"""The updates of the weights: an optimizer, its schedule, and what is done to gradients before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim.lr_scheduler import LRScheduler

_SMALL = 1e-6  # as in torch.nn.utils.clip_grad_norm_


@dataclass(frozen=True)
class Updates:
    """How weights are updated.

    Args:
        optimizer, schedule: the schedule is of steps.
        clip_norm: the largest norm of a gradient; 0 for no limit.
        clip: whether that is the norm of all parameters together ("global") or of each ("tensor").
        frozen: parameters that stay as they are in the first ``frozen_steps`` steps.
    """

    optimizer: torch.optim.Optimizer
    schedule: LRScheduler
    clip_norm: float = 0.0
    clip: Literal["global", "tensor"] = "global"
    frozen: Sequence[Parameter] = ()
    frozen_steps: float = 0.0

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        return float(self.optimizer.param_groups[0]["lr"])

    def freeze(self, step: int) -> None:
        """Drop the gradients of what is frozen in a step, counted from 0: no momentum, no weight decay, no part in a
        norm."""
        if step < self.frozen_steps:
            for parameter in self.frozen:
                parameter.grad = None

    def clip_gradients(self) -> None:
        """Scale gradients down to the largest norm allowed, if any; the device is not waited for.

        They have to be those of all accumulated batches and all processes.
        """
        if not self.clip_norm:
            return
        trained = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        if self.clip == "global":
            torch.nn.utils.clip_grad_norm_(trained, self.clip_norm)
        else:
            clip_each([parameter.grad for parameter in trained if parameter.grad is not None], self.clip_norm)


@torch.no_grad()
def clip_each(gradients: list[Tensor], largest: float) -> None:
    """Scale each of the tensors whose norm is larger down to that, in fused operations.

    Source: DINO (Caron et al., ICCV 2021), its released code.
    """
    norms = torch._foreach_norm(gradients)
    factors = [(largest / (norm + _SMALL)).clamp(max=1.0) for norm in norms]
    torch._foreach_mul_(gradients, factors)
