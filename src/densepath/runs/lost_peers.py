"""Reports that another process of a run has died, in one line instead of a network error."""

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

# Messages of gloo, NCCL and sockets about a lost connection. Their other errors (mismatched messages, a port in use,
# a GPU that is named twice) have other causes and are not caught.
_LOST = re.compile(
    r"connection (closed|reset|refused|was)|failed to connect|broken pipe|timed? ?out|(read|write|recv|send) error"
    r"|remote (process exited|error)|remote peer|socket closed|aborted",
    re.IGNORECASE,
)


@contextmanager
def reporting_lost_peers(processes: int, out: Path, signals: StopSignals | None = None) -> Iterator[None]:
    """Turn a lost connection to another process into an error that the user can understand.

    Args:
        processes: number of processes of the run.
        out: the run folder.
        signals: the stop signals; after one of them the other process has stopped, too.

    Raises:
        UserError: another process does not answer.
        Interrupted: it does not answer, and a stop signal was received.
    """
    try:
        yield
    except RuntimeError as error:
        network = isinstance(error, dist.DistError) or "gloo" in str(error).lower()
        if processes == 1 or not (network and _LOST.search(str(error))):
            raise
        signum = signals.heard() if signals is not None else None
        if signum is not None:
            say(f"densepath: stopped, because another process has stopped; --resume continues {out}")
            raise Interrupted(signum) from error
        remedy = "continue with --resume" if has_checkpoint(out / CHECKPOINTS) else "start it again with --resume"
        raise UserError(
            "another process of this run has died or stopped (its own message says why; the system may have killed it, "
            f"out of memory, for instance); {remedy} ({_reason(error)})"
        ) from error


def _reason(error: RuntimeError) -> str:
    """The first sentence of an error, or of the last error that NCCL reports, without source locations."""
    text = str(error).partition("Last error:")[2] or str(error)
    text = re.sub(r"^\[[^\]]*\]\s*|\S+\.\w+:\d+,?\s*", "", text.strip())
    return re.split(r"\.\s|\n", text)[0]
