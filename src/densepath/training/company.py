"""Processes that lose one another: a line for the user instead of what the network between them says."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch.distributed as dist

from densepath.core.errors import UserError
from densepath.training.checkpoints import CHECKPOINTS, has_checkpoint

# What gloo says of a connection that has ended. What it says of messages that don't fit each other is a bug, and stays.
_GLOO = re.compile(r"gloo.*(connect|broken pipe|timed? ?out|(read|write|recv|send) error)", re.IGNORECASE | re.DOTALL)


@contextmanager
def in_company(processes: int, out: Path) -> Iterator[None]:
    """Where processes work together: that one is gone is no bug of those that are left.

    Args:
        processes: of the run.
        out: the run folder.

    Raises:
        UserError: another process does not answer.
    """
    try:
        yield
    except RuntimeError as error:
        if processes == 1 or not (isinstance(error, dist.DistError) or _GLOO.search(str(error))):
            raise
        remedy = "go on with --resume" if has_checkpoint(out / CHECKPOINTS) else "start it again with --resume"
        raise UserError(
            "another process of this run has died or stopped (its own message says why; the system may have killed it, "
            f"for want of memory, say); {remedy} ({_reason(error)})"
        ) from error


def _reason(error: RuntimeError) -> str:
    """The first sentence of an error, without the place in somebody's source code."""
    said = re.sub(r"^\[[^\]]*\]\s*", "", str(error).strip())
    return re.split(r"\.\s|\n", said)[0]
