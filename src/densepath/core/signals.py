"""SIGTERM and SIGHUP, of a lost terminal, as an exception, so that temporary files are removed."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

# Windows, which the command line refuses, has no SIGHUP.
_ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))


def unwind(signum: int, frame: FrameType | None) -> None:
    """A signal handler: leave the program by way of its clean-up; a second SIGTERM ends it at once."""
    for each in _ENDING:
        if signal.getsignal(each) is unwind:
            signal.signal(each, after_the_first(each, signum))
    raise SystemExit(128 + signum)


def after_the_first(signum: int, first: int) -> Callable[[int, FrameType | None], None] | signal.Handlers:
    """The handler of a signal once the program ends because of the first one.

    A terminal that closes sends SIGHUP several times, and whoever closes it may send SIGTERM, too.
    """
    if signum == signal.SIGHUP:
        return signal.SIG_IGN
    return _ignore_once if first == signal.SIGHUP else signal.SIG_DFL


def _ignore_once(signum: int, frame: FrameType | None) -> None:
    signal.signal(signum, signal.SIG_DFL)


@contextmanager
def unwinding_on_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP raise SystemExit in the main thread inside the block, unless something else handles them
    (``nohup`` ignores SIGHUP)."""
    main = threading.current_thread() is threading.main_thread()
    usual = [signum for signum in _ENDING if main and signal.getsignal(signum) == signal.SIG_DFL]
    for signum in usual:
        signal.signal(signum, unwind)
    try:
        yield
    finally:
        for signum in usual:
            if signal.getsignal(signum) is unwind:  # else the process is about to exit
                signal.signal(signum, signal.SIG_DFL)
