"""Updates of the weights: an optimizer, its schedule, gradient clipping, and frozen parameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim.lr_scheduler import LRScheduler

from densepath.core.distributed import local, total

_SMALL = 1e-6  # as in torch.nn.utils.clip_grad_norm_


@dataclass(frozen=True)
class Updates:
    """An optimizer with its schedule, gradient clipping and frozen parameters.

    Args:
        optimizer, schedule: the optimizer, and its schedule, which is updated at each step.
        clip_norm: largest norm of the gradient; 0 for no limit.
        clip: whether clip_norm limits the norm over all parameters ("global") or of each one ("tensor").
        frozen: parameters that are not changed in the first ``frozen_steps`` steps.
        frozen_steps: number of steps of ``frozen``.
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
        """Drop the gradients of parameters that are frozen in a step, counted from 0.

        They get no momentum and no weight decay, and do not count in the norm for clipping.
        """
        if step < self.frozen_steps:
            for parameter in self.frozen:
                parameter.grad = None

    def clip_gradients(self) -> None:
        """Scale gradients down to the largest norm, if there is one; without device synchronization.

        Called after the gradients of all accumulated batches and all processes have been summed.
        """
        if not self.clip_norm:
            return
        trained = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        if self.clip == "global":
            norm = torch.nn.utils.get_total_norm(
                [parameter.grad for parameter in trained if parameter.grad is not None]
            )
            # On a CPU reading the norm (of gradients that are not sharded) costs less than to multiply by 1.
            read = norm.device.type == "cpu" and local(norm) is norm
            if not (read and float(norm) + _SMALL <= self.clip_norm):  # NaN is passed on to all gradients
                torch.nn.utils.clip_grads_with_norm_(trained, self.clip_norm, norm)
        else:
            clip_each([parameter.grad for parameter in trained if parameter.grad is not None], self.clip_norm)


@torch.no_grad()
def clip_each(gradients: list[Tensor], largest: float) -> None:
    """Scale each tensor whose norm is larger than ``largest`` down to it, in fused operations.

    Source: DINO (Caron et al., ICCV 2021), its released code.
    """
    parts = [local(gradient) for gradient in gradients]
    norms = torch.stack(torch._foreach_norm(parts))
    if parts and parts[0] is not gradients[0]:  # sharded
        norms = total(norms.square()).sqrt()
    factors = (largest / (norms + _SMALL)).clamp(max=1.0)
    if factors.device.type == "cpu":  # where reading them costs less than to multiply by 1
        changed = (factors < 1).nonzero().flatten().tolist()
        parts, factors = [parts[number] for number in changed], factors[changed]
    if parts:
        torch._foreach_mul_(parts, list(factors.unbind()))
