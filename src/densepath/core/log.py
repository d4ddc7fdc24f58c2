"""The log of a run: a text file of the lines that it prints."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_open: list[Path] = []


def log(line: str) -> None:
    """Append a line to the open logs. A full disk or a read-only folder does not stop the work."""
    for path in _open:
        with suppress(OSError), path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"{line}\n")


@contextmanager
def logged(path: Path) -> Iterator[None]:
    """Append what is printed in this block to a file: lines for the user, warnings of Python and of this package.

    The file is created with its first line; its folder must exist.
    """
    show = warnings.showwarning

    def show_and_log(*given: Any, **options: Any) -> None:
        show(*given, **options)
        log(warnings.formatwarning(*given[:4]).rstrip())

    handler, logger = _Handler(), logging.getLogger("densepath")
    _open.append(path)
    logger.addHandler(handler)
    warnings.showwarning = show_and_log
    try:
        yield
    finally:
        warnings.showwarning = show
        logger.removeHandler(handler)
        _open.remove(path)


class _Handler(logging.Handler):
    """Logs warnings, and prints them as Python does where no other handler is set up."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)

    def emit(self, record: logging.LogRecord) -> None:
        line = record.getMessage()
        if not logging.getLogger().handlers:
            with suppress(OSError, ValueError, AttributeError):
                print(line, file=sys.stderr, flush=True)
        log(line)
