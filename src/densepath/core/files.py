"""Atomic writing of files and folders: a failure leaves no partial files."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tempfile
import unicodedata
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from densepath.core.errors import UserError, one_line
from densepath.core.remains import final_name, remove, remove_abandoned, temporary_name

# The umask can only be read by setting it, for all threads: so once, before there are other threads.
_UMASK = os.umask(0o077)
os.umask(_UMASK)
LOCK = ".lock"  # in a folder that a process writes to
_OPEN = ("/dev", "/dev/fd", "/proc/self/fd")  # folders of links to what the process has open, such as /dev/stdout
CANNOT_HOLD = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)  # errors caused by the destination


class CannotWrite(UserError):
    """A file cannot be written, because of its disk or its folder.

    Args:
        what: the file and the reason, in a few words.
        full: whether free disk space may help.
        other: what else helps.
    """

    def __init__(self, what: str, full: bool = False, other: str = "use another path") -> None:
        super().__init__(what, full, other)
        self.what = one_line(what)
        self.full = full
        self.other = other

    def __str__(self) -> str:
        return f"{self.what}; {'free disk space or ' if self.full else ''}{self.other}"


def _open_to_readers(path: Path) -> None:
    """Set the permissions of a new file: some writers use a private temporary file."""
    path.chmod(0o666 & ~_UMASK)


def _sync(path: Path) -> None:
    """Flush a file to disk, so that a crash after the rename cannot lose it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Write a file or a folder under a temporary name and rename it when it is complete.

    Args:
        path: the final path of the file or folder. Missing parents are created.

    Yields:
        A path on the same disk that does not exist yet: create the file or the folder there. A finished file replaces
        an older one, or a link to one, whose target stays as it is. A pipe or a character device gets the bytes of the
        file. The content of a finished folder moves into an empty folder, which may be a link or a mount point.

    Raises:
        UserError: the parent folder cannot be created, the disk is full, or the path is not writable, or a disk or
            socket, or the name of a file that is open.
    """
    path = Path(path)
    if _is_stream(path):
        with tempfile.TemporaryDirectory() as folder, writing(path):
            yield Path(folder) / path.name
            with open(Path(folder) / path.name, "rb") as file, open(path, "ab") as stream:
                shutil.copyfileobj(file, stream)
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"the folder {path.parent} cannot be created ({error.strerror}); use another path") from error
    parent = path if path.is_dir() else path.parent
    temporary = parent / temporary_name(path.name)
    try:
        with writing(path, temporary):
            remove(temporary)
            yield temporary
            if temporary.is_file():
                if path.is_dir():
                    raise UserError(f"{path} is a folder; give the path of a file")
                _open_to_readers(temporary)
                _sync(temporary)
            if temporary.is_dir() and path.is_dir():
                _move_content(temporary, path)
            else:
                os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            remove(temporary)
        raise


def _is_stream(path: str | Path) -> bool:
    """Whether a path is written to and not replaced: a pipe or a character device.

    Raises:
        UserError: it is a disk or a socket, or a name of a file that is open, such as /dev/stdout.
    """
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    if stat.S_ISBLK(mode) or stat.S_ISSOCK(mode):
        raise UserError(f"{path} is a disk or a socket; give the path of a file")
    if stat.S_ISREG(mode) and os.path.islink(path) and os.path.dirname(os.path.abspath(path)) in _OPEN:
        raise UserError(f"{path} is a file that is open; give the path of this file")
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)


def _move_content(folder: Path, dest: Path) -> None:
    """Move what is in a folder into another one that is empty except for the first."""
    if any(path != folder for path in dest.iterdir()):
        raise UserError(f"{dest} is not empty any more; use another folder")
    for path in sorted(folder.iterdir()):
        os.replace(path, dest / path.name)
    folder.rmdir()


@contextmanager
def writing(path: str | Path, temporary: str | Path | None = None) -> Iterator[None]:
    """Name the file that could not be written: the system's error often does not.

    Args:
        path: the file, as the user named it.
        temporary: its temporary name while it is written, if any.

    Raises:
        CannotWrite: the disk is full, or the path is not writable.
    """
    try:
        yield
    except OSError as error:
        named = error.filename is not None and Path(os.fsdecode(error.filename))
        denied = error.errno in (errno.EACCES, errno.EPERM) and named and named.is_relative_to(temporary or path)
        if error.errno not in CANNOT_HOLD and not denied:
            raise
        known = Path(path).with_name(final_name(Path(path).name))
        full = not denied and error.errno != errno.EROFS
        raise CannotWrite(f"{known} cannot be written ({error.strerror})", full) from error


def check_writable(out: str | Path) -> None:
    """Check that a file can be written, before the work for it begins; remove what a killed writer has left.

    Raises:
        UserError: it is a folder, a disk or a socket; or the folder that it would be created in is read-only, or no
            folder; or it is a pipe or a device that must not be written to.
    """
    if _is_stream(out):
        if not os.access(out, os.W_OK):
            raise UserError(f"{out} cannot be written ({os.strerror(errno.EACCES)}); use another path")
        return
    if os.path.isdir(out):
        raise UserError(f"{out} is a folder; give the path of a file")
    folder = Path(out).absolute().parent
    while not os.path.lexists(folder):
        folder = folder.parent
    if not folder.is_dir():
        raise UserError(f"{out} cannot be written: {folder} is not a folder; use another path")
    if not os.access(folder, os.W_OK | os.X_OK):
        code = errno.EROFS if os.statvfs(folder).f_flag & os.ST_RDONLY else errno.EACCES
        raise UserError(f"{out} cannot be written ({os.strerror(code)}); use another path")
    remove_abandoned(out)


def refuse_replacing(out: str | Path, *inputs: str | Path | None) -> None:
    """Check that a result would not be written over a file that it is made of.

    Raises:
        UserError: it would be.
    """
    for path in inputs:
        if path is not None and os.path.exists(out) and os.path.exists(path) and os.path.samefile(out, path):
            raise UserError(f"{out} is read, and the result would replace it; use another path")


def existing(folder: str | Path, name: str) -> str:
    """A file's name as it is on disk: it may differ by Unicode normalization (macOS writes other forms than Linux), and
    have backslashes between folders (Windows); the name itself if the file does not exist."""
    spellings = dict.fromkeys((name, name.replace("\\", "/")))
    forms = [form for text in spellings for form in (text, *(unicodedata.normalize(f, text) for f in ("NFC", "NFD")))]
    return next((form for form in forms if os.path.lexists(os.path.join(folder, form))), name)


class Unchanged:
    """A file that is mapped into memory: to read it after it was truncated would kill the process without a word.

    A file that replaces it does not matter: the mapping keeps the old one.

    Args:
        path: the file, as the user named it.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = path
        self._then = os.stat(path)

    def check(self) -> None:
        """Call it before the mapping is read.

        Raises:
            UserError: the file was written to meanwhile.
        """
        try:
            now = os.stat(self._path)
        except OSError:
            return
        if now.st_size < self._then.st_size and os.path.samestat(now, self._then):
            raise UserError(
                f"{self._path} was truncated while it was read ({self._then.st_size:,} bytes then, "
                f"{now.st_size:,} now); make it again under another name, then start again"
            )


def require_new_file(path: str | Path) -> None:
    """Check that ``path`` names no file yet: for results that took long to compute, or that other files depend on.

    What a killed writer of it has left is removed.

    Raises:
        UserError: it exists.
    """
    remove_abandoned(path)
    if os.path.exists(path):
        raise UserError(f"{path} already exists; name another file or remove it first")


def require_new_folder(
    path: str | Path, what: str, but: Collection[str] = (), sources: Collection[str | Path | None] = ()
) -> Path:
    """Check that ``path`` can become a new folder for ``what``; remove what a killed writer has left.

    It may contain entries named in ``but``, and may not lie in one of the ``sources`` (folders, or files for their
    folders): their next reader would find the copies of their own images.

    Raises:
        UserError: it is a folder that is not empty, or not a folder, or lies in one of the sources.
    """
    path = Path(path)
    for source in (Path(each) for each in sources if each):
        folder = source.parent if source.is_file() else source
        if folder.is_dir() and path.resolve() != folder.resolve() and path.resolve().is_relative_to(folder.resolve()):
            raise UserError(
                f"{path} lies in {folder}, where {what} would be read as images next time; use another path"
            )
    remove_abandoned(path)
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is not a folder; use another path for {what}")
    if path.exists() and any(entry.name not in (LOCK, *but) for entry in path.iterdir()):
        raise UserError(f"{path} already exists and is not empty; use another folder for {what} or remove it first")
    return path
