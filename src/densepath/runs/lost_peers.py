"""Processes that lose one another: a line for the user instead of what the network between them says."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch.distributed as dist

from densepath.core.errors import UserError
from densepath.core.streams import say
from densepath.runs.checkpoints import CHECKPOINTS, has_checkpoint
from densepath.runs.signals import Interrupted, StopSignals

# What gloo, NCCL and sockets say of a connection that has ended. What they say of messages that don't fit each other,
# of a port that is taken or a GPU that is named twice has other causes, and stays.
_LOST = re.compile(
    r"connection (closed|reset|refused|was)|failed to connect|broken pipe|timed? ?out|(read|write|recv|send) error"
    r"|remote (process exited|error)|remote peer|socket closed|aborted",
    re.IGNORECASE,
)


@contextmanager
def reporting_lost_peers(processes: int, out: Path, signals: StopSignals | None = None) -> Iterator[None]:
    """Where processes work together: that one is gone is not a bug of those that are left.

    Args:
        processes: of the run.
        out: the run folder.
        signals: those that ask to stop: then the other has stopped, too.

    Raises:
        UserError: another process does not answer.
        Interrupted: it does not, and a signal came.
    """
    try:
        yield
    except RuntimeError as error:
        network = isinstance(error, dist.DistError) or "gloo" in str(error).lower()
        if processes == 1 or not (network and _LOST.search(str(error))):
            raise
        signum = signals.heard() if signals is not None else None
        if signum is not None:
            say(f"densepath: stopped, as another process has; --resume continues with what {out} holds")
            raise Interrupted(signum) from error
        remedy = "continue with --resume" if has_checkpoint(out / CHECKPOINTS) else "start it again with --resume"
        raise UserError(
            "another process of this run has died or stopped (its own message says why; the system may have killed it, "
            f"out of memory, for instance); {remedy} ({_reason(error)})"
        ) from error


def _reason(error: RuntimeError) -> str:
    """The first sentence of an error, or of the last one that NCCL names, without places in somebody's source code."""
    said = str(error).partition("Last error:")[2] or str(error)
    said = re.sub(r"^\[[^\]]*\]\s*|\S+\.\w+:\d+,?\s*", "", said.strip())
    return re.split(r"\.\s|\n", said)[0]
