"""Elapsed time, also when the system's clock jumps."""

from __future__ import annotations

import time


def clock(seconds: float) -> str:
    """Seconds as m:ss, or h:mm:ss from one hour on."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


class Stopwatch:
    """Counts seconds; a clock that jumps back (a machine that was moved or put to sleep) costs one interval."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._read_at = time.perf_counter()

    def read(self) -> float:
        """Seconds since it was created, never less than at the last reading."""
        now = time.perf_counter()
        self._seconds += max(now - self._read_at, 0.0)
        self._read_at = now
        return self._seconds
