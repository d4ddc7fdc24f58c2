"""NaN and Inf: finds the step and the images that they came from, and stops the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NoReturn

import torch
import torch.distributed as dist
from torch import nn

from densepath.core.distributed import local, rank, world_size
from densepath.core.errors import UserError
from densepath.core.files import atomic_write
from densepath.runs.checkpoints import CHECKPOINTS, has_checkpoint
from densepath.runs.folder import NOT_FINITE
from densepath.training.meter import Meter

Place = tuple[int, list[int]]  # a step, and the images of its batch


@torch.no_grad()
def all_finite(module: nn.Module) -> bool:
    """Whether all weights of this process are finite numbers; waits for the device."""
    return bool(torch.stack([local(weight).isfinite().all() for weight in module.parameters()]).all())


def first_of_all(mine: Place | None) -> Place | None:
    """The earliest step that any process reports, with the images of all that report it; None if none does."""
    found = [mine] * world_size()
    if world_size() > 1:
        dist.all_gather_object(found, mine)
    reported = [place for place in found if place]
    if not reported:
        return None
    earliest = min(step for step, _ in reported)
    return earliest, [image for step, images in reported if step == earliest for image in images]


def require_finite(task: nn.Module, meter: Meter, out: Path, *, weights: bool) -> None:
    """Stop the run if a loss, or one of the weights that are about to be saved, is NaN or Inf.

    All processes call this; it waits for the device.

    Args:
        task: the task, whose weights are checked.
        meter: has the losses.
        out: the run folder.
        weights: whether to check the weights.

    Raises:
        UserError: a loss or a weight is NaN or Inf.
    """
    bad, what = meter.not_finite(), "the loss is"
    if weights and bad is None and not all_finite(task):
        bad, what = meter.newest(), "weights are"
    bad = first_of_all(bad)
    if bad is not None:
        end_run(out, what, bad)


def end_run(out: Path, what: str, place: Place) -> NoReturn:
    """Write the step and the images of NaN or Inf to the run folder, and stop.

    Args:
        out: the run folder.
        what: what is not finite, with its verb: "the loss is".
        place: the step and its images.

    Raises:
        UserError: always.
    """
    step, images = place
    note = out / NOT_FINITE
    if rank() == 0:
        with atomic_write(note) as part:
            part.write_text(json.dumps({"step": step, "images": images}))
    remedy = "lower the learning rate, use larger batches, or try precision 32"
    if not has_checkpoint(out / CHECKPOINTS):
        raise UserError(
            f"{what} not finite at step {step}, before the first checkpoint ({note} lists its images); "
            f"{remedy}, and name another folder"
        )
    raise UserError(
        f"{what} not finite at step {step} ({note} lists the images of its batch); the checkpoint from before "
        f"is kept; {remedy}"
    )
