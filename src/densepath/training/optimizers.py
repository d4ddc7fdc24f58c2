"""Optimizers as the recipes name them: parameter groups and the learning rate's course."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from densepath.core.errors import UserError
from densepath.core.schedules import lr_factor
from densepath.training.lars import LARS

_NAMES = ("sgd", "lars", "adamw")


@dataclass(frozen=True)
class Optimizer:
    """How the weights are updated. The defaults are the paper's for MoCo-v2 and ConCL.

    Args:
        name: "sgd", "lars" or "adamw".
        lr: base learning rate, for the recipe's batch size.
        momentum: of SGD and LARS; the first beta of AdamW.
        weight_decay: on the gradient (SGD, LARS) or decoupled (AdamW).
        exclude_norm_and_bias: no weight decay on biases, on weights of norms, and on the position embeddings and class
            tokens of vision transformers. LARS always excludes these, from its layer-wise scaling, too.
        schedule: "cosine" to zero, "step" (times 0.1 at each milestone) or "constant"; updated at each step.
        warmup_epochs: epochs of linear warm-up from 1e-4 of the learning rate.
        milestones: epochs at which "step" drops.

    Source: ConCL, ECCV 2022, the configurations of the released code.
    """

    name: Literal["sgd", "lars", "adamw"] = "sgd"
    lr: float = 0.03
    momentum: float = 0.9
    weight_decay: float = 1e-4
    exclude_norm_and_bias: bool = False
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    warmup_epochs: float = 0.0
    milestones: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.name not in _NAMES:
            raise UserError(f"no optimizer is called {self.name!r}; use one of {', '.join(_NAMES)}")
        if self.schedule not in ("cosine", "step", "constant"):
            raise UserError(f"no schedule is called {self.schedule!r}; use cosine, step or constant")
        if not self.lr > 0:
            raise UserError(f"the learning rate must be positive, not {self.lr}")
        if not 0 <= self.momentum < 1:
            raise UserError(f"the momentum must be at least 0 and less than 1, not {self.momentum}")
        if not self.weight_decay >= 0:
            raise UserError(f"the weight decay must not be negative, as {self.weight_decay} is")


def parameter_groups(module: nn.Module, settings: Optimizer) -> list[dict[str, Any]]:
    """The trainable parameters of a module: those that decay, and those that are excluded from it.

    Biases and the weights of norms are told by having one dimension; networks of timm name the others.
    """
    trained = [p for p in module.parameters() if p.requires_grad]
    if settings.name != "lars" and not settings.exclude_norm_and_bias:
        return [{"params": trained}]
    named = _named_by_timm(module)
    decayed: dict[str, Any] = {"params": [p for p in trained if p.ndim > 1 and p not in named]}
    excluded: dict[str, Any] = {"params": [p for p in trained if p.ndim <= 1 or p in named], "weight_decay": 0.0}
    if settings.name == "lars":
        excluded["adapt"] = False
    return [decayed, excluded]


def _named_by_timm(module: nn.Module) -> set[nn.Parameter]:
    """The parameters that networks of timm exclude from weight decay by name: position embeddings, class tokens."""
    networks: list[Any] = [part for part in module.modules() if hasattr(part, "no_weight_decay")]
    return {p for network in networks for name, p in network.named_parameters() if name in network.no_weight_decay()}


def build_optimizer(module: nn.Module, settings: Optimizer) -> torch.optim.Optimizer:
    """The optimizer of a module's trainable parameters, in its fused form where there is one."""
    groups = parameter_groups(module, settings)
    lr, momentum, decay = settings.lr, settings.momentum, settings.weight_decay
    if settings.name == "lars":
        return LARS(groups, lr=lr, momentum=momentum, weight_decay=decay)
    if settings.name == "adamw":
        return torch.optim.AdamW(groups, lr=lr, betas=(momentum, 0.999), weight_decay=decay, fused=True)
    return torch.optim.SGD(groups, lr=lr, momentum=momentum, weight_decay=decay, fused=True)


def build_schedule(
    optimizer: torch.optim.Optimizer, settings: Optimizer, total_steps: int, steps_per_epoch: float
) -> LambdaLR:
    """The learning rate at each optimizer step.

    Args:
        optimizer: whose learning rate follows.
        settings: names the course, in epochs.
        total_steps: optimizer steps of the whole run.
        steps_per_epoch: optimizer steps in an epoch.
    """
    warmup = settings.warmup_epochs * steps_per_epoch
    milestones = [epoch * steps_per_epoch for epoch in settings.milestones]

    def factor(step: int) -> float:
        return lr_factor(settings.schedule, step, total_steps, warmup=warmup, milestones=milestones)

    return LambdaLR(optimizer, factor)
