"""Writing lines for the user, to a stream that may be closed, full, or read by nobody."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import TextIO


def write_line(line: str, stream: TextIO | None) -> bool:
    """Write a line at once; a stream that does not take it gets nothing more, and that stops nobody.

    Returns:
        Whether it was written.
    """
    if stream is None:  # where it was closed before Python began
        return False
    try:
        print(line, file=stream, flush=True)
    except (OSError, ValueError):  # ValueError: it is closed
        silence(stream)
        return False
    return True


def say(line: str) -> None:
    """One line for the user, on stderr."""
    write_line(line, sys.stderr)


def settle() -> None:
    """Write out what stdout and stderr still hold, where somebody takes it; or Python's end would fail over it."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            silence(stream)


def occupy() -> None:
    """Lead standard streams that are closed into nothing: or the next file that is opened would get what is written
    to them."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest one that is free: this


def silence(stream: TextIO | None) -> None:
    """Lead a dead stream into nothing, together with all that it still holds."""
    with suppress(OSError, ValueError, AttributeError):
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, stream.fileno())  # type: ignore[union-attr]
        os.close(nothing)
