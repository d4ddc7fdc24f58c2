"""Bounded waits: they report what they wait for, call listeners, and end with an error after a time limit."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from densepath.core.errors import UserError

T = TypeVar("T")

_LOOK = 0.2  # seconds between two attempts
_listeners: list[Callable[[str, float], None]] = []


class Stuck(UserError):
    """A wait exceeded its time limit."""


def notice_seconds() -> float:
    """A wait is reported every N seconds: DENSEPATH_WAIT_NOTICE, or 30."""
    return _seconds("DENSEPATH_WAIT_NOTICE", 30.0)


def limit_seconds() -> float:
    """How long a run waits for data or for another process: DENSEPATH_WAIT_LIMIT, or 30 minutes."""
    return _seconds("DENSEPATH_WAIT_LIMIT", 1800.0)


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


def wait_for(attempt: Callable[[float], T], what: str, remedy: str) -> T:
    """Repeat an attempt until it succeeds.

    Args:
        attempt: waits for at most the given seconds; returns the result, or raises TimeoutError.
        what: the name of the awaited thing, such as "image data".
        remedy: what to do if it does not come.

    Raises:
        Stuck: the limit is exceeded.
    """
    start = time.monotonic()
    while True:
        try:
            return attempt(_LOOK)
        except TimeoutError:
            waited = time.monotonic() - start
        for listener in tuple(_listeners):
            listener(what, waited)
        if waited > limit_seconds():
            raise Stuck(f"no {what} for {waited:.0f} s; {remedy}")


def _seconds(name: str, default: float) -> float:
    text = os.environ.get(name, "")
    try:
        seconds = float(text) if text else default
    except ValueError:
        seconds = 0.0
    if not seconds > 0:
        raise UserError(f"{name} is {text!r}; give a number of seconds, or leave it unset")
    return seconds
