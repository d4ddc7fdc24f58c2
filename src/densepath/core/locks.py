"""Lock files: that other processes wait for, that they are refused by, and that they try."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, partial
from pathlib import Path

from filelock import FileLock

from densepath.core.errors import UserError
from densepath.core.files import LOCK, writing
from densepath.core.streams import say
from densepath.core.waiting import limit_seconds, wait_for

# Errors of file systems without locks.
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL)
_BEAT = 5.0  # seconds between two signs of life
_held: set[Path] = set()  # by this process
_files: dict[
    Path, int
] = {}  # lock files, and the process that holds them: this one, or the one that it was forked from


class Held(Exception):
    """Another process, or another thread of this one, holds a lock file; the text says which, for messages."""


@contextmanager
def shared_work(path: Path, what: str) -> Iterator[None]:
    """Do work that several processes need, in one of them: the others wait for the lock file, and find it done.

    They wait as long as the working process gives signs of life, which are the times of the lock file.

    Args:
        path: the lock file.
        what: what it makes, for the message of those who wait: "label maps".

    Raises:
        Stuck: the working process gives no sign of life for too long.
        OSError: the lock file cannot be created.
    """
    lock = FileLock(path)
    try:
        wait_for(
            lambda seconds: lock.acquire(timeout=seconds),
            f"{what} from another process",
            f"it holds {path}, but does not respond; end it, then start again",
            sign=lambda: touched(path),
        )
    except (NotImplementedError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in NO_LOCKS:
            raise
        say(f"densepath: the file system of {path.parent} has no locks; do not start two runs that need new {what}")
        yield
        return
    try:
        with signs_of_life(path):
            yield
    finally:
        lock.release()


@contextmanager
def signs_of_life(path: Path) -> Iterator[None]:
    """Touch a lock file every few seconds, so that those who wait for it know that this process lives."""
    done = threading.Event()
    threading.Thread(target=_beat, args=(path, done), daemon=True).start()
    try:
        yield
    finally:
        done.set()


@contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Hold a folder, which is created if it is missing, so that no other process writes a run into it.

    The system releases the lock when this process ends, however it ends; child processes do not hold it.

    Raises:
        UserError: another process holds it, or it cannot be created.
    """
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"the folder {folder} cannot be created ({error.strerror}); use another path") from error
    _refuse_own(folder)
    try:
        release = hold(folder / LOCK, of=folder)
    except Held as holder:
        raise _refusal(folder, holder) from None
    _held.add(here := folder.resolve())
    try:
        yield
    finally:
        _held.discard(here)
        release()
        if made:
            with suppress(OSError):
                folder.rmdir()  # if nothing was written


def refuse_held(folder: Path) -> None:
    """Check that no other process holds a folder, without changing it.

    Raises:
        UserError: one does; see :func:`sole_writer`.
    """
    _refuse_own(folder)
    with suppress(OSError):
        descriptor = os.open(folder / LOCK, os.O_RDWR)
        try:
            _try(folder / LOCK, descriptor)
        except Held as holder:
            raise _refusal(folder, holder) from None
        finally:
            os.close(descriptor)


def _refusal(folder: Path, holder: Held) -> UserError:
    return UserError(f"another process writes to {folder} ({holder}); wait until it has ended, or use another folder")


def _refuse_own(folder: Path) -> None:
    """Refuse a folder that this process holds: the system would not, and even opening the file would end the lock."""
    if folder.resolve() in _held:
        raise UserError(f"a run of this process writes to {folder}; wait until it has ended, or use another folder")


def hold(path: Path, of: Path | None = None) -> Callable[[], None]:
    """Lock a file, which is created. The system releases it when this process ends; child processes do not hold it.

    Args:
        path: the file.
        of: the folder that it locks, for the message if it cannot be created.

    Returns:
        A function that releases the lock, and removes the file.

    Raises:
        Held: somebody else holds it.
        UserError: it cannot be created.
    """
    if _files.get(path) == os.getpid():  # the system would not refuse it, and opening the file would end the lock
        raise Held("this process")
    while True:
        with writing(of or path):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _try(path, descriptor)
            if _is_at(descriptor, path):
                with suppress(OSError):  # on a full disk the holder has no name
                    os.ftruncate(descriptor, 0)
                    os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
                _files[path] = os.getpid()
                return partial(_release, path, descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its former holder has removed the file meanwhile


def _release(path: Path, descriptor: int) -> None:
    with suppress(OSError):
        path.unlink()  # still locked: nobody else uses this file
    os.close(descriptor)
    _files.pop(path, None)


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file still lies at a path."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except OSError:
        return False


def _try(path: Path, descriptor: int) -> None:
    """Lock an open file, or raise Held."""
    # Not flock(2): a worker process would inherit the lock, and hold it longer than a process that was killed.
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in NO_LOCKS:
            _explain_no_locks(path.parent)
            return
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            raise
        raise Held(os.pread(descriptor, 200, 0).decode(errors="replace") or "its name is unknown") from None


@cache  # once
def _explain_no_locks(folder: Path) -> None:
    say(f"densepath: the file system of {folder} has no locks; do not start a second run in this folder")


def _beat(path: Path, done: threading.Event) -> None:
    while not done.wait(min(_BEAT, limit_seconds() / 4)):
        with suppress(OSError):
            os.utime(path)


def touched(path: Path) -> int:
    """When a file was changed last, in nanoseconds; 0 if it is missing."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
