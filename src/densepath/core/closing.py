"""The last lines of a verb: how long it took, what it made, and what to do next."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from densepath.core.keywords import literal
from densepath.core.stopwatch import Stopwatch, clock
from densepath.core.streams import say

_STEP = ContextVar("_STEP", default=False)


@contextmanager
def step_of_another() -> Iterator[None]:
    """The verbs that end in this block are steps of another one, so that they name no next command."""
    before = _STEP.set(True)
    try:
        yield
    finally:
        _STEP.reset(before)


def command(*words: str | Path) -> str:
    """A command line of densepath, quoted for a shell.

    Args:
        words: its words; paths as such, since they may be called like an option or a keyword.
    """
    return shlex.join(["densepath", *(literal(word) if isinstance(word, Path) else word for word in words)])


def say_end(watch: Stopwatch, scores: str, made: Mapping[str, Path], commands: Sequence[str] = ()) -> None:
    """Print the last lines of a run.

    Args:
        watch: started with the run.
        scores: scores in a line; "" for none.
        made: what was written -> where; files that do not exist are left out.
        commands: commands that continue from here.
    """
    say(f"densepath: done in {clock(watch.read())}" + (f": {scores}" if scores else ""))
    for what, path in made.items():
        if path.exists():
            say(f"densepath: {what}: {path}")
    for number, command in enumerate(() if _STEP.get() else commands):
        say(f"densepath: {'or' if number else 'next'}: {command}")
