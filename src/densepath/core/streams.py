"""Writing lines for the user, to a stream that may be closed, full or a broken pipe."""

from __future__ import annotations

import codecs
import io
import os
import select
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec
from typing import Any, TextIO, cast

from rich.console import Console

from densepath.core.errors import UserError, counted, first_few
from densepath.core.files import CANNOT_HOLD
from densepath.core.log import log

_ESCAPE = "densepath_escape"  # an error handler of codecs
_PATIENCE = 0.5  # seconds that a line waits for a full pipe


def write_line(line: str, stream: TextIO | None) -> bool:
    """Write a line and flush. If that fails, the stream is silenced and no error is raised.

    A line is dropped if the reader of a pipe does not read (a pager, a stopped process): a run must not wait for it.

    Returns:
        Whether it was written.
    """
    if stream is None or not _takes_a_line(stream):  # None: it was closed before Python started
        return False
    try:
        _put(f"{line}\n", stream)
        stream.flush()
    except (OSError, ValueError):  # ValueError: it is closed
        silence(stream)
        return False
    return True


def write_result(line: str) -> None:
    """Write a line of a result to stdout, which has it alone: unlike :func:`write_line` it waits for a slow reader.

    Raises:
        UserError: the disk is full. A reader that has closed its pipe is not an error.
    """
    try:
        if sys.stdout is not None:
            _put(f"{line}\n", sys.stdout)
            sys.stdout.flush()
    except (OSError, ValueError) as error:
        silence(sys.stdout)
        if isinstance(error, OSError) and error.errno in CANNOT_HOLD:
            raise UserError(
                f"stdout cannot be written ({error.strerror}); free disk space or redirect it elsewhere"
            ) from error


def _put(text: str, stream: TextIO) -> int:
    """Write a text; characters that the stream's encoding lacks are escaped, and so are bytes that are not text."""
    try:
        return stream.write(text)
    except UnicodeEncodeError:
        encoding = getattr(stream, "encoding", None) or "ascii"
        return stream.write(text.encode(encoding, "backslashreplace").decode(encoding))


def _takes_a_line(stream: TextIO) -> bool:
    """Whether a line can be written without blocking, after a short wait."""
    try:
        return bool(select.select([], [stream.fileno()], [], _PATIENCE)[1])
    except (OSError, ValueError, TypeError, AttributeError):  # no descriptor that can be asked: writing will show
        return True


class _Patient:
    """A stream whose errors are ignored: work must not end because nobody reads how far it is."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return _put(text, self._stream)
        except (OSError, ValueError):
            silence(self._stream)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError):
            silence(self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def open_console(stream: TextIO | None, **options: Any) -> Console:
    """A console on stdout or stderr that survives a full, closed or lost stream.

    Args:
        stream: the stream; None if it was closed before Python started.
        options: those of ``rich.console.Console``.
    """
    return Console(file=cast(TextIO, _Patient(stream)) if stream is not None else io.StringIO(), **options)


def is_animated(console: Console) -> bool:
    """Whether progress bars can be drawn: in a terminal, and in a notebook that has widgets."""
    return console.is_terminal or (console.is_jupyter and find_spec("ipywidgets") is not None)


def say(line: str) -> None:
    """One line for the user, on stderr and in the log of a run."""
    write_line(line, sys.stderr)
    log(line)


def say_left_out(names: Sequence[str], what: str, why: str) -> None:
    """A line that says which ones are left out, if there are any.

    Args:
        names: those that are left out.
        what: one of them is, such as "image".
        why: the phrase after their number, such as "without labels".
    """
    if names:
        say(f"densepath: left out: {counted(len(names), what)} {why}: {first_few(names)}")


def flush_streams() -> None:
    """Flush stdout and stderr and ignore errors: otherwise Python's own flush at exit would fail."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            silence(stream)


def open_streams() -> None:
    """Open closed standard streams on the null device, and let stdout escape characters that its encoding lacks.

    Otherwise the next file that is opened would get the number of a closed stream, and with it what is written to it.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number: this one
    if isinstance(sys.stdout, io.TextIOWrapper) and _lacks_characters(sys.stdout):
        sys.stdout.reconfigure(errors=_ESCAPE if sys.stdout.errors == "surrogateescape" else "backslashreplace")


def _lacks_characters(stream: io.TextIOWrapper) -> bool:
    """Whether writing a character can fail. ``surrogateescape``, Python's default in the locale C, only helps bytes."""
    narrow = codecs.lookup(stream.encoding).name != "utf-8"
    return stream.errors == "strict" or (stream.errors == "surrogateescape" and narrow)


def _escape(error: UnicodeError) -> tuple[str | bytes, int]:
    """A character that an encoding lacks: the byte that it stands for (of a file name that is not text), or escaped."""
    assert isinstance(error, UnicodeEncodeError)
    error.end = error.start + 1
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeEncodeError:
        return codecs.lookup_error("backslashreplace")(error)


codecs.register_error(_ESCAPE, _escape)


def silence(stream: TextIO | None) -> None:
    """Redirect a broken stream, including its unflushed buffer, to the null device."""
    with suppress(OSError, ValueError, AttributeError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())  # type: ignore[union-attr]
        os.close(null)
