"""SIGTERM as an exception, so that temporary files are removed."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


def unwind(signum: int, frame: FrameType | None) -> None:
    """A signal handler: leave the program by way of its clean-up; a second signal ends it at once."""
    signal.signal(signum, signal.SIG_DFL)
    raise SystemExit(128 + signum)


@contextmanager
def unwinding_on_sigterm() -> Iterator[None]:
    """Let SIGTERM raise SystemExit in the main thread inside the block, unless something else handles it."""
    usual = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    if usual:
        signal.signal(signal.SIGTERM, unwind)
    try:
        yield
    finally:
        if usual:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
