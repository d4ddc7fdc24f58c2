"""Bounded waits: they report what they wait for, call listeners, and end with an error after a time limit."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from densepath.core.distributed import rank, world_size
from densepath.core.errors import UserError
from densepath.core.streams import say

T = TypeVar("T")

# Why data does not come, and the way out, for messages.
HANGING_READER = (
    "a file or a process that reads files does not respond (a hanging network disk, a pipe among the images); "
    "check them, then start again (DENSEPATH_WAIT_LIMIT sets how many seconds to wait)"
)

_LONGEST = 1e9  # seconds, instead of more or "inf": torch cannot count those
_LOOK = 0.2  # seconds between two attempts
_STOPPED = 5.0  # seconds by which an attempt is late if this process was suspended
_listeners: list[Callable[[str, float], None]] = []
_progress = 0


class Stuck(UserError):
    """A wait exceeded its time limit."""


def notice_seconds() -> float:
    """A wait is reported every N seconds: DENSEPATH_WAIT_NOTICE, or 30."""
    return _seconds("DENSEPATH_WAIT_NOTICE", 30.0)


def limit_seconds() -> float:
    """How long to wait for data or for another process: DENSEPATH_WAIT_LIMIT, or 30 minutes."""
    return _seconds("DENSEPATH_WAIT_LIMIT", 1800.0)


def progress(made: int = 0) -> int:
    """A counter of the work of this process: whoever sees it stand still knows that a thread hangs.

    Args:
        made: what has been done since the last call. Waits count as work, because they are bounded themselves.
    """
    global _progress
    _progress += made
    return _progress


@contextmanager
def listening(listener: Callable[[str, float], None]) -> Iterator[None]:
    """Call ``listener`` several times a second during waits inside the block.

    Args:
        listener: gets the name of the awaited thing and the seconds waited so far; an exception ends the wait.
    """
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


class Wait:
    """A wait in progress, which is reported, and ends at the limit.

    Args:
        what, remedy, sign: as for :func:`wait_for`.
    """

    def __init__(self, what: str, remedy: str = HANGING_READER, sign: Callable[[], Any] = lambda: None) -> None:
        self._what, self._remedy, self._sign = what, remedy, sign
        self._start = self._since = time.monotonic()
        self._reported, self._last = 0.0, sign()

    def check(self, late: float = 0.0) -> None:
        """Look at the clock. Call it every few seconds.

        Args:
            late: seconds by which this call is late: if this process did not wait meanwhile, they do not count.

        Raises:
            Stuck: the limit is exceeded.
        """
        now = time.monotonic()
        if late > _STOPPED:  # by Ctrl-Z or a scheduler: nobody worked meanwhile
            self._start, self._since = self._start + late, self._since + late
        waited = now - self._start
        for listener in tuple(_listeners):
            listener(self._what, waited)
        if waited - self._reported >= notice_seconds():
            self._reported = waited
            who = f"rank {rank()} is " if world_size() > 1 else ""
            say(f"densepath: {who}waiting for {self._what} since {waited:.0f} s")
        if (new := self._sign()) != self._last:
            self._last, self._since = new, now
        if now - self._since > limit_seconds():
            raise Stuck(f"no {self._what} for {now - self._since:.0f} s; {self._remedy}")


def wait_for(
    attempt: Callable[[float], T], what: str, remedy: str = HANGING_READER, sign: Callable[[], Any] = lambda: None
) -> T:
    """Repeat an attempt until it succeeds; report a long wait.

    Args:
        attempt: waits for at most the given seconds; returns the result, or raises TimeoutError.
        what: the name of the awaited thing, such as "image data".
        remedy: what to do if it does not come.
        sign: something that changes as long as the awaited party works: after a change the limit starts again.

    Raises:
        Stuck: the limit is exceeded.
    """
    wait = Wait(what, remedy, sign)
    while True:
        progress(1)
        before = time.monotonic()
        try:
            return attempt(_LOOK)
        except TimeoutError:
            late = time.monotonic() - before - _LOOK
        wait.check(late)


def _seconds(name: str, default: float) -> float:
    text = os.environ.get(name, "")
    try:
        seconds = float(text) if text else default
    except ValueError:
        seconds = 0.0
    if not seconds > 0:
        raise UserError(f"{name} is {text!r}; give a number of seconds, or leave it unset")
    return min(seconds, _LONGEST)
