"""Writing files and folders so that a failure leaves nothing half-written behind."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from densepath.core.errors import UserError

# It can only be read by setting it, for all threads at once: so once, before there are others.
_UMASK = os.umask(0o077)
os.umask(_UMASK)


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
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    _remove(temporary)
    try:
        yield temporary
        if temporary.is_file():
            _open_to_readers(temporary)
            _sync(temporary)
        os.replace(temporary, path)
    except BaseException:
        _remove(temporary)
        raise


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
