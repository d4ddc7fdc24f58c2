"""Writing files and folders so that a failure leaves nothing half-written behind."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from densepath.core.errors import UserError

# It can only be read by setting it, for all threads at once: so once, before there are others.
_UMASK = os.umask(0o077)
os.umask(_UMASK)
_REMAINS = re.compile(r"\.(.+)\.\d+\.part")  # the temporary names of atomic_write
_CANNOT_HOLD = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)  # what the place is to blame for, not the source


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _open_to_readers(path: Path) -> None:
    """Permissions as of any new file: some writers go through a private temporary file of their own."""
    path.chmod(0o666 & ~_UMASK)


def _sync(path: Path) -> None:
    """Force what was written to the disk, so that a crash after the rename cannot lose it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Write a file or a folder under a temporary name and give it its own name only once it is whole.

    Args:
        path: where the finished file or folder belongs. Missing parents are made.

    Yields:
        A sibling of ``path`` that does not exist yet: create the file or the folder there.
        A finished file replaces an older one; a finished folder takes its place only where nothing, or an
        empty folder, stands.

    Raises:
        UserError: its folder cannot be made, the disk is full, or nothing can be written there.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"the folder {path.parent} cannot be made ({error.strerror}); name another place") from error
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with writing(path, temporary):
            _remove(temporary)
            yield temporary
            if temporary.is_file():
                _open_to_readers(temporary)
                _sync(temporary)
            os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            _remove(temporary)
        raise


@contextmanager
def writing(path: str | Path, temporary: str | Path | None = None) -> Iterator[None]:
    """Say which file could not be written where the place is to blame: the system's own error often does not.

    Args:
        path: the file, as its user knows it.
        temporary: the name, if it is another one, that it has while it is written.

    Raises:
        UserError: the disk is full, or nothing can be written there.
    """
    try:
        yield
    except OSError as error:
        named = error.filename is not None and Path(os.fsdecode(error.filename))
        denied = error.errno in (errno.EACCES, errno.EPERM) and named and named.is_relative_to(temporary or path)
        if error.errno not in _CANNOT_HOLD and not denied:
            raise
        known = Path(path).with_name(_REMAINS.sub(r"\1", Path(path).name))  # a part of something that is being written
        raise UserError(
            f"{known} cannot be written ({error.strerror}); make room there or name another place"
        ) from error


def remove_remains(folder: str | Path) -> None:
    """Remove what writers that were killed left in a folder that nobody else writes to, and in those below it."""
    for path in Path(folder).rglob(".*.part"):
        if _REMAINS.fullmatch(path.name):
            _remove(path)


def require_new_folder(path: str | Path, what: str) -> Path:
    """Check that ``path`` is free to be made into a folder of ``what``.

    Raises:
        UserError: a folder that is not empty stands there, or something else than a folder.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is no folder; name another place for {what}")
    if path.exists() and any(path.iterdir()):
        raise UserError(f"{path} already exists and is not empty; name another folder for {what} or remove it first")
    return path
