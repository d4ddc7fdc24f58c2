"""Speed and memory, compared with other libraries: ``python -m benchmarks.NAME --help``."""

from __future__ import annotations

import sys
from types import TracebackType

from densepath.core.errors import UserError


def report_error(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print an error that a user can fix, such as a missing folder, in one line; others with their traceback."""
    if isinstance(error, UserError | OSError):
        print(f"error: {error}{getattr(error, 'remedy', '')}", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


if sys.argv[:1] == ["-m"]:  # Python looks for the program of this package that it is to run
    sys.excepthook = report_error
