"""The length of a detector's training, and its learning rate schedule."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from densepath.core.errors import UserError
from densepath.core.schedules import lr_factor
from densepath.transfer.detection.config import STEPS

SCHEDULES = {"0.5x": 0.5, "1x": 1, "2x": 2, "3x": 3, "5x": 5}
_WARMUP, _WARMUP_START = 1000, 1e-3  # steps; Detectron2's
_BASE_LR, _BASE_BATCH = 0.02, 16
_MOST = 10**9  # steps


@dataclass(frozen=True)
class Solver:
    """The schedule and optimizer of a training.

    Args:
        steps: steps of the whole run.
        lr: learning rate after the warm-up.
        warmup: steps of a linear warm-up from a thousandth of the learning rate.
        drops: steps at which the learning rate is divided by 10.
        optimizer: "sgd" with momentum 0.9 and weight decay 1e-4 (none on norms), or "adamw" with layer-wise learning
            rate decay (:func:`~densepath.transfer.detection.layer_decay.layer_groups`).
    """

    steps: int
    lr: float
    warmup: int
    drops: tuple[int, ...]
    optimizer: Literal["sgd", "adamw"] = "sgd"

    def factor(self, step: int) -> float:
        """The factor of ``lr`` at a step."""
        return lr_factor(
            "step", step, self.steps, warmup=self.warmup, warmup_start=_WARMUP_START, milestones=self.drops
        )


def make_solver(
    schedule: str,
    max_steps: int | None = None,
    warmup_steps: int | None = None,
    drops: Sequence[float] = (0.8,),
    batch_size: int = _BASE_BATCH,
    lr: float | None = None,
    *,
    base_steps: int = STEPS,
    base_lr: float = _BASE_LR,
    optimizer: Literal["sgd", "adamw"] = "sgd",
) -> Solver:
    """The solver for the options of :func:`~densepath.transfer.detection.detect.detect`.

    Args:
        schedule, max_steps, warmup_steps, drops, batch_size, lr, base_steps: as there.
        base_lr: the learning rate for 16 images, if ``lr`` is not given.
        optimizer: see :class:`Solver`.

    Raises:
        UserError: an option is invalid.
    """
    if schedule not in SCHEDULES:
        raise UserError(f"no schedule is called {schedule!r}; use one of {', '.join(SCHEDULES)}, or give max_steps")
    if base_steps < 2:
        raise UserError(f"base_steps is {base_steps}; give at least 2")
    steps = round(SCHEDULES[schedule] * base_steps) if max_steps is None else max_steps
    if not 1 <= steps <= _MOST:
        raise UserError(f"max_steps is {steps}; give a number from 1 to {_MOST:,}")
    if lr is None:
        lr = base_lr * batch_size / _BASE_BATCH
    if not 0 < lr < math.inf:
        raise UserError(f"lr is {lr}; give a positive learning rate")
    if not all(0 < share <= 1 for share in drops):
        raise UserError(f"drops are {list(drops)}; give shares of the run, from 0 to 1")
    if warmup_steps is not None and warmup_steps < 0:
        raise UserError(f"warmup_steps is {warmup_steps}; give at least 0")
    if warmup_steps is None:
        warmup_steps = min(_WARMUP, (base_steps if max_steps is None else max_steps) // 5)
    return Solver(steps, lr, warmup_steps, tuple(round(share * steps) for share in drops), optimizer)
