"""How often things happen in a run."""

from __future__ import annotations

from dataclasses import dataclass

from densepath.core.errors import UserError


@dataclass(frozen=True)
class Intervals:
    """How often things happen, in optimizer steps (0: never) unless it says minutes.

    Args:
        log_every: measurements are written, and the loss is checked.
        save_every_steps, save_every_minutes: a checkpoint is written.
        evaluate_every: the evaluation is called.
        draw_every: a picture is drawn; and at the end of the run, if any are.
    """

    log_every: int = 10
    save_every_steps: int = 0
    save_every_minutes: float = 10.0
    evaluate_every: int = 0
    draw_every: int = 0

    def __post_init__(self) -> None:
        if self.log_every < 1:
            raise UserError(f"log_every is {self.log_every}; it must be at least 1")


def due(step: int, every: int) -> bool:
    """Whether something happens after a step that happens every ``every`` steps; never with 0."""
    return every > 0 and step % every == 0
