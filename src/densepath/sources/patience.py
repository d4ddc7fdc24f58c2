"""Reading a file again after a pause, where a disk or a network drive has failed for a moment."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from typing import TypeVar

PAUSES = (0.5, 2.0)  # seconds before further attempts
_SHORT = "EIO ESTALE ETIMEDOUT EAGAIN ENXIO ENOTCONN ECONNRESET ECONNABORTED ENETDOWN ENETUNREACH EHOSTDOWN"
_PASSING = {getattr(errno, name) for name in (*_SHORT.split(), "EHOSTUNREACH", "EREMOTEIO") if hasattr(errno, name)}

Made = TypeVar("Made")
_failed: set[str] = set()  # files that were waited for in vain


def patiently(path: str, attempt: Callable[[], Made]) -> Made:
    """Do what reads a file, and again after a pause if its disk fails, which a network drive does for seconds.

    A file that was waited for in vain is not waited for again before a part of it can be read.

    Args:
        path: the file.
        attempt: reads from it.

    Raises:
        Exception: what the last attempt raises.
    """
    for pause in () if path in _failed else PAUSES:
        try:
            return attempt()
        except Exception as error:
            if not disk_failed(error):
                raise
        time.sleep(pause)
    try:
        made = attempt()
    except Exception as error:
        if disk_failed(error):
            _failed.add(path)
        raise
    _failed.discard(path)
    return made


def disk_failed(error: BaseException | None) -> bool:
    """Whether an error is one of a disk or a network drive that may be available again soon; not a missing file."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _PASSING:
            return True
        error = error.__cause__
    return False
