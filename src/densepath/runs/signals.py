"""Signals that ask a run to stop."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class Interrupted(SystemExit):
    """The run was asked to stop, has saved its state and stopped; the exit code says by which signal (130, 143)."""

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)


class StopSignals:
    """Turns Ctrl-C and SIGTERM into a note, so that the step under way can finish and be saved.

    The second Ctrl-C or SIGTERM acts as if this class weren't there. Outside the main thread, where Python allows no
    handlers, signals keep their meaning.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.received: int | None = None
        self._former: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._former = {signum: signal.getsignal(signum) for signum in self.SIGNALS}
            self.install()
        return self

    def install(self) -> None:
        """Take the signals (again): other code, Lightning's for one, may have put its own handlers in place."""
        if self._former and self.received is None:
            for signum in self.SIGNALS:
                signal.signal(signum, self._note)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()
        self._former = {}

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.received = signum
        self._restore()

    def _restore(self) -> None:
        for signum, handler in self._former.items():
            signal.signal(signum, handler)
