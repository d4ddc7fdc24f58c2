"""Processes that lose one another: a line for the user instead of what the network between them says."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch.distributed as dist

from densepath.core.errors import UserError
from densepath.runs.checkpoints import CHECKPOINTS, has_checkpoint

# What gloo, NCCL and sockets say of a connection that has ended. What they say of messages that don't fit each other,
# of a port that is taken or a GPU that is named twice has other causes, and stays.
_LOST = re.compile(
    r"connection (closed|reset|refused|was)|failed to connect|broken pipe|timed? ?out|(read|write|recv|send) error"
    r"|remote (process exited|error)|remote peer|socket closed|aborted",
    re.IGNORECASE,
)


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
        network = isinstance(error, dist.DistError) or "gloo" in str(error).lower()
        if processes == 1 or not (network and _LOST.search(str(error))):
            raise
        remedy = "go on with --resume" if has_checkpoint(out / CHECKPOINTS) else "start it again with --resume"
        raise UserError(
            "another process of this run has died or stopped (its own message says why; the system may have killed it, "
            f"for want of memory, say); {remedy} ({_reason(error)})"
        ) from error


def _reason(error: RuntimeError) -> str:
    """The first sentence of an error, or of the last one that NCCL names, without places in somebody's source code."""
    said = str(error).partition("Last error:")[2] or str(error)
    said = re.sub(r"^\[[^\]]*\]\s*|\S+\.\w+:\d+,?\s*", "", said.strip())
    return re.split(r"\.\s|\n", said)[0]
