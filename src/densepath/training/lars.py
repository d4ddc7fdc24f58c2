"""LARS: momentum SGD whose step is scaled, tensor by tensor, to the size of the weights."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer


class LARS(Optimizer):
    """Layer-wise adaptive rate scaling.

    For each tensor v = momentum * v + lr * local * (g + weight_decay * w) and w = w - v, where local =
    trust * |w| / (|g| + weight_decay * |w|). Groups with ``adapt=False`` have local = 1.
    Where the released code divides zero by zero (weights and gradient all zero), local is 1.

    Args:
        params: parameters, or groups of them.
        lr: learning rate.
        momentum: momentum of the update buffer, in which each update is multiplied by the learning rate of its step.
        weight_decay: weight decay, added to the gradient as weight_decay * w.
        trust: largest update of a tensor in one step, relative to its norm.
        adapt: whether the step is scaled by ``local``.

    Source: You et al., arXiv 1708.03888; the form of OpenSelfSup, which ConCL's benchmark uses.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 1e-3,
        adapt: bool = True,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust, "adapt": adapt}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One update of all parameters that have a gradient; no device synchronization."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._step_group(group)
        return loss

    def _step_group(self, group: dict[str, Any]) -> None:
        weights: list[Tensor] = [p for p in group["params"] if p.grad is not None]
        if not weights:
            return
        gradients: list[Tensor] = [p.grad for p in weights if p.grad is not None]
        for p in weights:
            if "momentum_buffer" not in self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        buffers: list[Tensor] = [self.state[p]["momentum_buffer"] for p in weights]
        decay = group["weight_decay"]
        steps = torch._foreach_add(gradients, weights, alpha=decay)
        if group["adapt"]:
            of_weights = torch.stack(torch._foreach_norm(weights))
            of_gradients = torch.stack(torch._foreach_norm(gradients))
            divisor = of_gradients + decay * of_weights
            local = torch.where(divisor > 0, group["trust"] * of_weights / divisor, 1.0)
            torch._foreach_mul_(steps, list(local.unbind()))
        torch._foreach_mul_(buffers, group["momentum"])
        torch._foreach_add_(buffers, steps, alpha=group["lr"])
        torch._foreach_sub_(weights, buffers)
