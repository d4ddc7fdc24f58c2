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
    start = since = time.monotonic()
    reported, last = 0.0, sign()
    while True:
        progress(1)
        before = time.monotonic()
        try:
            return attempt(_LOOK)
        except TimeoutError:
            now = time.monotonic()
        if (stopped := now - before - _LOOK) > _STOPPED:  # by Ctrl-Z or a scheduler: nobody worked meanwhile
            start, since = start + stopped, since + stopped
        waited = now - start
        for listener in tuple(_listeners):
            listener(what, waited)
        if waited - reported >= notice_seconds():
            reported = waited
            who = f"rank {rank()} is " if world_size() > 1 else ""
            say(f"densepath: {who}waiting for {what} since {waited:.0f} s")
        if (new := sign()) != last:
            last, since = new, now
        if now - since > limit_seconds():
            raise Stuck(f"no {what} for {now - since:.0f} s; {remedy}")


def _seconds(name: str, default: float) -> float:
    text = os.environ.get(name, "")
    try:
        seconds = float(text) if text else default
    except ValueError:
        seconds = 0.0
    if not seconds > 0:
        raise UserError(f"{name} is {text!r}; give a number of seconds, or leave it unset")
    return seconds
