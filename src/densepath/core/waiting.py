"""Waiting that never lasts for ever: it says what is waited for, listens, and gives up."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from densepath.core.errors import UserError

T = TypeVar("T")

_LOOK = 0.2  # seconds between two looks
_listeners: list[Callable[[str, float], None]] = []


class Stuck(UserError):
    """What was waited for did not come."""


def notice_seconds() -> float:
    """After how long a wait is reported, and again every so often: DENSEPATH_WAIT_NOTICE, or 30 seconds."""
    return _seconds("DENSEPATH_WAIT_NOTICE", 30.0)


def limit_seconds() -> float:
    """How long a run waits for data or for another process: DENSEPATH_WAIT_LIMIT, or 30 minutes."""
    return _seconds("DENSEPATH_WAIT_LIMIT", 1800.0)


@contextmanager
def listening(listener: Callable[[str, float], None]) -> Iterator[None]:
    """While something is waited for inside, call ``listener`` several times a second.

    Args:
        listener: gets what is waited for and the seconds since; whatever it raises ends the wait.
    """
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def wait_for(attempt: Callable[[float], T], what: str, remedy: str) -> T:
    """Try until it works.

    Args:
        attempt: waits for the given seconds at most; gives the result, or raises TimeoutError.
        what: is waited for, such as "image data".
        remedy: what to do where it never comes.

    Raises:
        Stuck: it did not come within the limit.
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
