"""Reading a file again after a pause, where a disk or a network drive has failed for a moment."""

from __future__ import annotations

import errno
import math
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path, PurePath
from typing import Any, TypeVar, cast

from densepath.core.errors import one_line
from densepath.core.streams import say
from densepath.sources.corrupt import CorruptImage, can_pass

PAUSES = (0.5, 2.0)  # seconds before further attempts
_MOST = 2  # files of a folder that are waited for in vain
_RARELY, _LONGEST = 10, 30.0  # times as long as a test of a disk takes, or so many seconds, the next one is not made
_SAMPLE = 2**16  # bytes at both ends of a file, by which its disk is tested
_SHORT = "EIO ESTALE ETIMEDOUT EAGAIN ENXIO ENOTCONN ECONNRESET ECONNABORTED ENETDOWN ENETUNREACH EHOSTDOWN"
_PASSING = {getattr(errno, name) for name in (*_SHORT.split(), "EHOSTUNREACH", "EREMOTEIO") if hasattr(errno, name)}

Made = TypeVar("Made")
Reader = TypeVar("Reader", bound=Callable[..., Any])


class _Failures:
    """What a process knows of disks that fail.

    Attributes:
        files: those that were waited for in vain, and of which nothing has been read since.
        folders: how many files in a folder, or in those below it, were waited for in vain since one there was read.
        reported: whether a line has said that a file is waited for.
        tested: when the disk of a file was tested and gave all, and how long that took, in seconds.
    """

    def __init__(self) -> None:
        self.files: set[str] = set()
        self.folders: Counter[PurePath] = Counter()
        self.reported = False
        self.tested: dict[str, tuple[float, float]] = {}

    def pauses(self, path: str) -> tuple[float, ...]:
        """The seconds to wait for a file before further attempts."""
        if not self.files:
            return PAUSES
        known = path in self.files or any(self.folders[folder] >= _MOST for folder in _folders(path))
        return () if known else PAUSES

    def add(self, path: str) -> None:
        """A file that could not be read."""
        if path not in self.files:
            self.files.add(path)
            self.folders.update(_folders(path))

    def remove(self, path: str) -> None:
        """A file that could be read, and so its disk."""
        self.files.discard(path)
        if self.folders:
            for folder in _folders(path):
                self.folders.pop(folder, None)


def _folders(path: str) -> Sequence[PurePath]:
    """The folders that a file is in, without the root: that of all disks."""
    return PurePath(os.path.abspath(path)).parents[:-1]


_failures = _Failures()
_thread = threading.local()


def patiently(path: str, attempt: Callable[[], Made]) -> Made:
    """Do what reads a file, and again after a pause if its disk fails, which a network drive does for seconds.

    A file that was waited for in vain is not waited for again before a part of it can be read, and after two files of
    a folder no other one there before one can be read. Attempts inside of an attempt do not wait.

    Args:
        path: the file.
        attempt: reads from it.

    Raises:
        Exception: what the last attempt raises; if only earlier ones say that the disk has failed, what they raise.
    """
    if getattr(_thread, "inside", False):
        return attempt()
    failure: Exception | None = None
    _thread.inside = True
    try:
        for pause in (*_failures.pauses(path), None):
            try:
                made = attempt()
            except Exception as error:
                if disk_failed(error):
                    failure = error
                if failure is None or isinstance(error, MemoryError):
                    raise
            else:
                _failures.remove(path)
                return made
            if pause is not None:
                _report(path, failure)
                time.sleep(pause)
        _failures.add(path)
        assert failure is not None
        raise failure
    finally:
        _thread.inside = False
        del failure  # its traceback holds what the attempt has opened


def patient(read: Reader) -> Reader:
    """A function of a file, its first argument ``path``, that reads it :func:`patiently`."""

    @wraps(read)
    def reading(path: str | Path, *given: Any, **options: Any) -> Any:
        return patiently(str(path), lambda: read(path, *given, **options))

    return cast(Reader, reading)


@contextmanager
def disk_errors_named(path: str, files_of: Callable[[str], Sequence[str]]) -> Iterator[None]:
    """Raise the error of the disk where a library calls a file damaged, or unknown, that cannot be read at all.

    Args:
        path: the file.
        files_of: all files that belong to it; may raise OSError.

    Raises:
        CorruptImage: the library's, or one that says why the ends of a file cannot be read.
    """
    try:
        yield
    except CorruptImage as error:
        if not can_pass(error) and (failure := _read_ends(path, files_of)) is not None and disk_failed(failure):
            raise CorruptImage(error.path, f"cannot be read ({failure.strerror})") from failure
        raise


def _read_ends(path: str, files_of: Callable[[str], Sequence[str]]) -> OSError | None:
    start = time.monotonic()
    before, took = _failures.tested.get(path, (-math.inf, 0.0))
    # A damaged slide may have thousands of files, and of damaged parts.
    if start - before < min(_RARELY * took, _LONGEST):
        return None
    try:
        for name in files_of(path):
            with open(name, "rb") as file:
                for place in (0, max(0, os.fstat(file.fileno()).st_size - _SAMPLE)):
                    file.seek(place)
                    file.read(_SAMPLE)
    except OSError as error:
        return error
    now = time.monotonic()
    _failures.tested[path] = now, now - start
    return None


def disk_failed(error: BaseException | None) -> bool:
    """Whether an error is one of a disk or a network drive that may be available again soon; not a missing file."""
    return _disk_error(error) is not None


def _disk_error(error: BaseException | None) -> OSError | None:
    while error is not None:
        if isinstance(error, OSError) and error.errno in _PASSING:
            return error
        error = error.__cause__
    return None


def _report(path: str, failure: BaseException | None) -> None:
    """Say which file is waited for first; what fails in the end is reported by those who read it."""
    error = _disk_error(failure)
    if error is not None and not _failures.reported:
        _failures.reported = True
        say(f"densepath: {one_line(path)} cannot be read ({error.strerror}); trying again for {sum(PAUSES):g} s")
