"""Optimizers of the recipes: parameter groups, and the schedules of learning rate and weight decay."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from numbers import Real
from typing import Any, Literal

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from densepath.core.errors import UserError
from densepath.core.schedules import cosine, lr_factor
from densepath.training.lars import LARS
from densepath.training.update_limits import UpdateLimits, require_not_negative
from densepath.training.updates import Updates

_NAMES = ("sgd", "lars", "adamw", "lamb")


@dataclass(frozen=True)
class Optimizer(UpdateLimits):
    """The optimizer and its schedule. The defaults are the paper's for MoCo-v2 and ConCL.

    Args:
        name: "sgd", "lars", "adamw" or "lamb".
        lr: learning rate for the recipe's batch size.
        momentum: momentum of SGD and LARS; the first beta of AdamW and LAMB.
        weight_decay: weight decay: added to the gradient (SGD, LARS), decoupled (AdamW), or added to the update before
            that is scaled to the norm of the weights (LAMB).
        exclude_norm_and_bias: no weight decay on biases, on weights of norms, and on the position embeddings, class and
            mask tokens of vision transformers. LARS and LAMB always exclude these, also from their layer-wise scaling.
        decay_tokens: whether these embeddings and tokens are not excluded, as in DINO.
        schedule: "cosine", "step" (times 0.1 at each milestone) or "constant"; updated at each step.
        warmup_epochs: epochs of linear warm-up, limited to half of the run.
        milestones: epochs at which "step" reduces the learning rate.
        beta2: second beta of AdamW and LAMB.
        clip_norm, clip, freeze, freeze_epochs: as in :class:`~densepath.training.update_limits.UpdateLimits`.
        final_lr: learning rate at the end of "cosine", as a share of ``lr``.
        final_weight_decay: weight decay at the end of the run; it changes along half a cosine wave from
            ``weight_decay``; null to keep it constant.
        warmup_start: learning rate at the start of the warm-up, as a share of ``lr``.
        decay_in_warmup: whether the schedule begins with the run, and the warm-up is a factor of it, as in mmcv;
            otherwise it begins after the warm-up.

    Source: ConCL, ECCV 2022, the configurations of the released code; LAMB: You et al., ICLR 2020, in the form of timm,
    which is that of SparK (ICLR 2023).
    """

    name: Literal["sgd", "lars", "adamw", "lamb"] = "sgd"
    lr: float = 0.03
    momentum: float = 0.9
    weight_decay: float = 1e-4
    exclude_norm_and_bias: bool = False
    decay_tokens: bool = False
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    warmup_epochs: float = 0.0
    milestones: tuple[float, ...] = ()
    beta2: float = 0.999
    final_lr: float = 0.0
    final_weight_decay: float | None = None
    warmup_start: float = 1e-4
    decay_in_warmup: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.name not in _NAMES:
            raise UserError(f"no optimizer is called {self.name!r}; use one of {', '.join(_NAMES)}")
        if self.schedule not in ("cosine", "step", "constant"):
            raise UserError(f"no schedule is called {self.schedule!r}; use cosine, step or constant")
        if not 0 < self.lr < math.inf:
            raise UserError(f"the learning rate must be positive and finite, not {self.lr}")
        for name in ("momentum", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"the {name} must be at least 0 and less than 1, not {getattr(self, name)}")
        require_not_negative(self, "weight_decay", "final_weight_decay", "warmup_epochs")
        for name in ("weight_decay", "final_weight_decay", "warmup_epochs"):
            if getattr(self, name) == math.inf:
                raise UserError(f"the {name} must be finite")
        if not isinstance(self.milestones, Collection) or not all(map(_is_epoch, self.milestones)):
            raise UserError(f"milestones are {self.milestones!r}; give a list of epochs, each a number from 0 on")
        if self.final_weight_decay and not self.weight_decay:
            raise UserError("a weight decay of 0 cannot rise to final_weight_decay; start it above 0")
        for name in ("final_lr", "warmup_start"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} is a share of the learning rate, between 0 and 1, not {getattr(self, name)}")

    def _reasons(self) -> dict[str, str]:
        layerwise, adaptive = self.name in ("lars", "lamb"), self.name in ("adamw", "lamb")
        unused, unwarmed = f"with the schedule {self.schedule}", "" if self.warmup_epochs else "without warmup_epochs"
        return super()._reasons() | {
            "milestones": "" if self.schedule == "step" or not self.milestones else unused,
            "final_lr": "" if self.schedule == "cosine" else unused,
            "warmup_start": unwarmed,
            "decay_in_warmup": unwarmed or (unused if self.schedule == "constant" else ""),
            "beta2": "" if adaptive else f"with {self.name}",
            "decay_tokens": "" if layerwise or self.exclude_norm_and_bias else "without exclude_norm_and_bias",
        }

    def warmup_steps(self, total_steps: int, steps_per_epoch: float) -> float:
        """Steps of the warm-up; at most half of the run."""
        return min(self.warmup_epochs * steps_per_epoch, total_steps / 2)


def _is_epoch(value: Any) -> bool:
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    return is_number and bool(0 <= value < math.inf)


def parameter_groups(module: nn.Module, settings: Optimizer) -> list[dict[str, Any]]:
    """The trainable parameters of a module: those with weight decay, and those without.

    Biases and weights of norms have one dimension; modules name their other parameters without weight decay in
    ``no_weight_decay()``, as timm's networks do.
    """
    trained = [p for p in module.parameters() if p.requires_grad]
    if settings.name not in ("lars", "lamb") and not settings.exclude_norm_and_bias:
        return [{"params": trained}]
    named = set() if settings.decay_tokens else _excluded_by_name(module)
    decayed: dict[str, Any] = {"params": [p for p in trained if p.ndim > 1 and p not in named]}
    excluded: dict[str, Any] = {"params": [p for p in trained if p.ndim <= 1 or p in named], "weight_decay": 0.0}
    if settings.name == "lars":
        excluded["adapt"] = False
    return [decayed, excluded]


def _excluded_by_name(module: nn.Module) -> set[nn.Parameter]:
    """The parameters that modules exclude from weight decay by name: position embeddings, class and mask tokens."""
    networks: list[Any] = [part for part in module.modules() if hasattr(part, "no_weight_decay")]
    return {p for network in networks for name, p in network.named_parameters() if name in network.no_weight_decay()}


def build_optimizer(module: nn.Module, settings: Optimizer) -> torch.optim.Optimizer:
    """The optimizer of a module's trainable parameters, in its fused form if there is one."""
    groups = split_frozen(parameter_groups(module, settings), set(frozen_parameters(module, settings.freeze)))
    lr, momentum, decay = settings.lr, settings.momentum, settings.weight_decay
    betas = (momentum, settings.beta2)
    if settings.name == "lars":
        return LARS(groups, lr=lr, momentum=momentum, weight_decay=decay)
    if settings.name == "adamw":
        return torch.optim.AdamW(groups, lr=lr, betas=betas, weight_decay=decay, fused=True)
    if settings.name == "lamb":
        from timm.optim import Lamb

        # Gradients are clipped before the step, in the same way for every optimizer.
        lamb: torch.optim.Optimizer = Lamb(groups, lr=lr, betas=betas, weight_decay=decay, max_grad_norm=None)
        return lamb
    sgd = torch.optim.SGD(groups, lr=lr, momentum=momentum, weight_decay=decay, fused=True)
    sgd.register_step_pre_hook(_begin_late_buffers)
    return sgd


def _begin_late_buffers(sgd: torch.optim.Optimizer, *step: Any) -> None:
    """Give parameters with a later first gradient than others of their group, as those of a method with phases, a
    momentum of zero: as good as none, without which torch's fused SGD refuses the group."""
    for group in sgd.param_groups:
        trained = [p for p in group["params"] if p.grad is not None]
        new = [p for p in trained if "momentum_buffer" not in sgd.state.get(p, {})]
        if group["momentum"] and len(new) < len(trained):
            for p in new:
                sgd.state[p]["momentum_buffer"] = torch.zeros_like(p)


def split_frozen(groups: list[dict[str, Any]], frozen: set[nn.Parameter]) -> list[dict[str, Any]]:
    """Split groups into frozen and other parameters: fused optimizers start the averages of a group together."""
    if not frozen:
        return groups
    halves = [
        {**group, "params": [p for p in group["params"] if (p in frozen) is half]}
        for group in groups
        for half in (False, True)
    ]
    return [group for group in halves if group["params"]]


def frozen_parameters(module: nn.Module, patterns: Sequence[str]) -> list[nn.Parameter]:
    """The trainable parameters whose names match one of the patterns; * stands for anything.

    Raises:
        UserError: a pattern matches none.
    """
    named = {name: p for name, p in module.named_parameters() if p.requires_grad}
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in named):
            raise UserError(f"no parameter is called {pattern!r}, which freeze names; there are: {', '.join(named)}")
    return [p for name, p in named.items() if any(fnmatchcase(name, pattern) for pattern in patterns)]


def build_updates(module: nn.Module, settings: Optimizer, total_steps: int, steps_per_epoch: float) -> Updates:
    """The optimizer, schedule and clipping of a module.

    Args:
        module: the module to train.
        settings: the optimizer, and its schedule in epochs.
        total_steps: number of optimizer steps of the whole run.
        steps_per_epoch: number of optimizer steps in an epoch.
    """
    optimizer = build_optimizer(module, settings)
    schedule = build_schedule(optimizer, settings, total_steps, steps_per_epoch)
    return limit_updates(module, optimizer, schedule, settings, steps_per_epoch)


def limit_updates(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: LambdaLR,
    limits: UpdateLimits,
    steps_per_epoch: float,
) -> Updates:
    """An optimizer and its schedule, with the clipping and the frozen parameters of a module."""
    return Updates(
        optimizer,
        schedule,
        clip_norm=limits.clip_norm,
        clip=limits.clip,
        frozen=frozen_parameters(module, limits.freeze),
        frozen_steps=_steps(limits.freeze_epochs, steps_per_epoch),
    )


def _steps(epochs: float, steps_per_epoch: float) -> float:
    return round(epochs * steps_per_epoch, 6)  # 0.07 * 100 is 7.000000000000001


class Schedule(LambdaLR):
    """The learning rate and the weight decay at each optimizer step.

    Args:
        optimizer: the optimizer to update; groups without weight decay stay without.
        lr_factor: step -> factor of the learning rate.
        weight_decay: step -> weight decay.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        lr_factor: Callable[[int], float],
        weight_decay: Callable[[int], float],
    ) -> None:
        self._weight_decay = weight_decay
        self._decayed = [number for number, group in enumerate(optimizer.param_groups) if group["weight_decay"]]
        super().__init__(optimizer, lr_factor)

    def step(self, epoch: int | None = None) -> None:
        super().step(epoch)
        for number in self._decayed:
            self.optimizer.param_groups[number]["weight_decay"] = self._weight_decay(self.last_epoch)

    def state_dict(self) -> dict[str, Any]:
        """Only the step: learning rate and weight decay are functions of it."""
        return {
            name: value for name, value in super().state_dict().items() if name not in ("_weight_decay", "_decayed")
        }


def build_schedule(
    optimizer: torch.optim.Optimizer, settings: Optimizer, total_steps: int, steps_per_epoch: float
) -> Schedule:
    """The learning rate and the weight decay at each optimizer step.

    Args:
        optimizer: the optimizer to update.
        settings: the schedule, in epochs.
        total_steps: number of optimizer steps of the whole run.
        steps_per_epoch: number of optimizer steps in an epoch.
    """
    warmup = settings.warmup_steps(total_steps, steps_per_epoch)
    milestones = [_steps(epochs, steps_per_epoch) for epochs in settings.milestones]

    def factor(step: int) -> float:
        return lr_factor(
            settings.schedule,
            step,
            total_steps,
            warmup=warmup,
            warmup_start=settings.warmup_start,
            milestones=milestones,
            final=settings.final_lr,
            decay_in_warmup=settings.decay_in_warmup,
        )

    def weight_decay(step: int) -> float:
        start, end = settings.weight_decay, settings.final_weight_decay
        return start if end is None else cosine(start, end, step / total_steps)

    return Schedule(optimizer, factor, weight_decay)
