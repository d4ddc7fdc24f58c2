"""Lines that a pre-training run prints when it starts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from densepath.core.errors import counted
from densepath.runs.progress import say
from densepath.sources.pixel_source import PixelSource
from densepath.training.division import HELD
from densepath.training.optimizers import Optimizer


def report_start(lines: Sequence[str | None], optimizer: Optimizer, steps: int, steps_per_epoch: float) -> None:
    """Print the initial weights, what was found in the images, which options have no effect, and whether the warm-up is
    shortened; a line each."""
    cut = optimizer.warmup_steps(steps, steps_per_epoch) < optimizer.warmup_epochs * steps_per_epoch
    epochs = "1 epoch" if optimizer.warmup_epochs == 1 else f"{optimizer.warmup_epochs:g} epochs"
    warmup = f"the warm-up of {epochs} is longer than half of the run and shortened to that"
    for line in (*lines, *optimizer.without_effect(), warmup if cut else None):
        if line:
            say(f"densepath: {line}")


def held_note(images: PixelSource, held: PixelSource | None, out: Path) -> str | None:
    """A line on the images that are held out of training, if there are any.

    Args:
        images: those to train on.
        held: those to validate on.
        out: the run folder.
    """
    if held is None:
        return None
    what = counted(len(held), "image is", "images are")
    return f"{what} held out for validation, by patient where known ({out / HELD}); {len(images):,} are trained on"


def color_note(without: Sequence[str]) -> str | None:
    """A line on the operations that need colors, if the images have none."""
    return (
        f"the images have no colors; color operations are reduced or left out: {', '.join(without)}"
        if without
        else None
    )
