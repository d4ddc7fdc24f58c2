"""Signals that stop a run."""

from __future__ import annotations

import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from densepath.core.signals import after_the_first, unwind


class Interrupted(SystemExit, KeyboardInterrupt):
    """The run was asked to stop, has saved its state and stopped; the exit code says by which signal (130, 143).

    It ends a script with this code, and can be caught as Ctrl-C. From Python 3.14 a script that does not catch it ends
    as by Ctrl-C: with a traceback and code 130.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)
        self.signum = signum


@contextmanager
def as_keyboard_interrupt() -> Iterator[None]:
    """In a notebook, where a SystemExit is not shown, turn :class:`Interrupted` into a plain KeyboardInterrupt."""
    try:
        yield
    except Interrupted as stop:
        if "IPython" not in sys.modules or sys.modules["IPython"].get_ipython() is None:
            raise
        how = "resume=True continues it from its newest checkpoint, if it has one"
        raise KeyboardInterrupt(f"the run has stopped; {how}") from stop


@contextmanager
def not_resumable() -> Iterator[None]:
    """Runs in this block cannot be resumed by the user, so that a stop does not say how."""
    StopSignals.resumable = False
    try:
        yield
    finally:
        StopSignals.resumable = True


class StopSignals:
    """Records Ctrl-C, SIGTERM, and SIGHUP of a lost terminal, so that the step in progress can finish and be saved.

    The second Ctrl-C or SIGTERM has its usual effect; SIGHUP stays ignored under ``nohup``. Outside the main thread,
    where Python allows no handlers, signals keep their usual effect, and so does one that a program around Python (R)
    handles: Python could not restore it.

    Python calls handlers only between two of its own instructions, and so not while the main thread waits for other
    processes: :meth:`heard` lets another thread see a signal during that time.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    resumable = True

    def __init__(self) -> None:
        self.received: int | None = None
        self._former: dict[int, Any] = {}
        self._ear: tuple[socket.socket, socket.socket] | None = None
        self._former_ear = -1

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            former = {signum: signal.getsignal(signum) for signum in self.SIGNALS}
            nohup = former[signal.SIGHUP] == signal.SIG_IGN
            kept = {signum for signum, each in former.items() if each is None or (signum == signal.SIGHUP and nohup)}
            self._former = {signum: each for signum, each in former.items() if signum not in kept}
            for signum in self._former:
                signal.signal(signum, self._note)
        return self

    def listen(self) -> None:
        """Prepare :meth:`heard`; called in the main thread."""
        if not self._former:
            return
        self._ear = socket.socketpair()
        for end in self._ear:
            end.setblocking(False)
        self._former_ear = signal.set_wakeup_fd(self._ear[1].fileno(), warn_on_full_buffer=False)

    def heard(self) -> int | None:
        """The received signal, or None; also before the main thread can handle it. May be called from any thread."""
        if self.received is None and self._ear is not None:
            try:
                came = [signum for signum in self._ear[0].recv(64) if signum in self.SIGNALS]
            except BlockingIOError:
                came = []
            if came:
                self.received = came[0]
        return self.received

    def check(self) -> None:
        """Stop if a signal was received.

        Raises:
            Interrupted: one was.
        """
        if self.received:
            raise Interrupted(self.received)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore(ended=True)
        self._former = {}
        if self._ear is not None:
            signal.set_wakeup_fd(self._former_ear)
            for end in self._ear:
                end.close()
            self._ear = None

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.received = self.received or signum
        if signum != signal.SIGHUP:  # a terminal that closes sends it several times, and SIGTERM may follow
            self._restore()

    def _restore(self, ended: bool = False) -> None:
        """Give back the handlers. SIGHUP is ignored until the state is saved, and after that if the terminal is lost:
        a notebook, or a script that catches Ctrl-C, continues as it was."""
        ignored = self.received == signal.SIGHUP if ended else self.received
        for signum, handler in self._former.items():
            # A process that waits for others runs no handler: the next signal must end it nevertheless.
            usual = after_the_first(signum, self.received) if handler is unwind and self.received else handler
            signal.signal(signum, signal.SIG_IGN if signum == signal.SIGHUP and ignored else usual)
