"""Numbers that are none: where they came from, and the end of their run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NoReturn

import torch
import torch.distributed as dist
from torch import nn

from densepath.core.distributed import rank, world_size
from densepath.core.errors import UserError
from densepath.core.files import atomic_write
from densepath.runs.checkpoints import CHECKPOINTS, has_checkpoint
from densepath.runs.folder import NOT_FINITE

Place = tuple[int, list[int]]  # a step, and the images of its batch


@torch.no_grad()
def all_finite(module: nn.Module) -> bool:
    """Whether all weights are finite numbers; waits for the device."""
    return bool(torch.stack([weight.isfinite().all() for weight in module.parameters()]).all())


def first_of_all(mine: Place | None) -> Place | None:
    """The earliest of the steps that processes name, with the images of all that name it; None where none does."""
    found = [mine] * world_size()
    if world_size() > 1:
        dist.all_gather_object(found, mine)
    named = [place for place in found if place]
    if not named:
        return None
    earliest = min(step for step, _ in named)
    return earliest, [image for step, images in named if step == earliest for image in images]


def end_run(out: Path, what: str, place: Place) -> NoReturn:
    """Write down where numbers that are none came from, and stop.

    Args:
        out: the run folder.
        what: is not finite, with its verb: "the loss is".
        place: where.

    Raises:
        UserError: always.
    """
    step, images = place
    note = out / NOT_FINITE
    if rank() == 0:
        with atomic_write(note) as part:
            part.write_text(json.dumps({"step": step, "images": images}))
    remedy = "lower the learning rate, take larger batches, or try precision 32"
    if not has_checkpoint(out / CHECKPOINTS):
        raise UserError(
            f"{what} not finite at step {step}, before the first checkpoint ({note} lists its images); "
            f"{remedy}, and name another folder"
        )
    raise UserError(
        f"{what} not finite at step {step} ({note} lists the images of its batch); the checkpoint from before "
        f"is kept; {remedy}"
    )
