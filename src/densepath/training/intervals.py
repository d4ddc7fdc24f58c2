"""The intervals of logging, saving, evaluation and pictures."""

from __future__ import annotations

from dataclasses import dataclass

from densepath.core.errors import UserError


@dataclass(frozen=True)
class Intervals:
    """Intervals in optimizer steps, or in minutes where the name says so; 0 for never.

    Args:
        log_every: interval of writing measurements and of checking the loss.
        save_every_steps, save_every_minutes: intervals of checkpoints.
        evaluate_every: interval of evaluations.
        keep_every: interval of weights that are kept.
        draw_every: interval of pictures; unless it is 0, one is also drawn at the end of the run.
    """

    log_every: int = 10
    save_every_steps: int = 0
    save_every_minutes: float = 10.0
    evaluate_every: int = 0
    keep_every: int = 0
    draw_every: int = 0

    def __post_init__(self) -> None:
        if self.log_every < 1:
            raise UserError(f"log_every is {self.log_every}; it must be at least 1")
        for name in ("save_every_steps", "save_every_minutes", "evaluate_every", "keep_every", "draw_every"):
            if not getattr(self, name) >= 0:
                raise UserError(f"{name} is {getattr(self, name)}; give a positive number, or 0 for never")


def due(step: int, every: int) -> bool:
    """Whether an event with an interval of ``every`` steps is due after ``step`` steps; never if ``every`` is 0."""
    return every > 0 and step % every == 0
