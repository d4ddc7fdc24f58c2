"""The intervals of logging, saving, evaluation and pictures."""

from __future__ import annotations

import math
from dataclasses import dataclass

from densepath.core.errors import UserError

_ROUNDING = 1e-9


@dataclass(frozen=True)
class Intervals:
    """Intervals in optimizer steps, or in minutes where the name says so; 0 for never.

    Args:
        log_every: interval of writing measurements and of checking the loss.
        save_every_steps, save_every_minutes: intervals of checkpoints.
        evaluate_every: interval of evaluations; this one and the next two may be fractions of steps, see :func:`due`.
        keep_every: interval of weights that are kept.
        draw_every: interval of pictures; unless it is 0, one is also drawn at the end of the run.
    """

    log_every: int = 10
    save_every_steps: int = 0
    save_every_minutes: float = 10.0
    evaluate_every: float = 0
    keep_every: float = 0
    draw_every: float = 0

    def __post_init__(self) -> None:
        if self.log_every < 1:
            raise UserError(f"log_every is {self.log_every}; it must be at least 1")
        for name in ("save_every_steps", "save_every_minutes", "evaluate_every", "keep_every", "draw_every"):
            if not getattr(self, name) >= 0:
                raise UserError(f"{name} is {getattr(self, name)}; give a positive number, or 0 for never")


def due(step: int, every: float) -> bool:
    """Whether an event with an interval of ``every`` steps is due after ``step`` steps; never if ``every`` is 0.

    It is due after the last whole step of each interval: after 2, 5, 7 and 10 steps if ``every`` is 2.5.
    """
    return every > 0 and interval_at(step, every) > 0


def interval_at(step: int, every: float) -> int:
    """The number, from 1, of the interval that ends with a step, or of the first of several; 0 if none ends there."""
    number = math.ceil(step / every - _ROUNDING)
    return number if number * every < step + 1 - _ROUNDING else 0
