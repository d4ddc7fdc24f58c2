"""Temporary names of files while they are written, and the removal of what killed writers have left."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import socket
import time
from contextlib import suppress
from pathlib import Path

_REMAINS = re.compile(r"\.(.+)\.(\d+)(?:@(.*))?\.part")  # temporary names: name, process, machine
_ABANDONED = 24 * 3600  # seconds without a change, after which another machine's temporary files are abandoned
_LONGEST = 150  # bytes of a file's name in its temporary name


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with what is in it; a missing one is ignored."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def temporary_name(name: str) -> str:
    """The name under which this process writes a file or a folder until it is complete."""
    return f".{shortened(name, _LONGEST)}.{os.getpid()}@{_machine()}.part"


def final_name(name: str) -> str:
    """The name that a file with a temporary name will have; other names as they are.

    What is written under a temporary name may itself be the temporary name of something larger. Of such a name that was
    too long and therefore shortened, only the outer part is known.
    """
    while match := _REMAINS.fullmatch(name):
        name = match[1]
    return name


def shortened(name: str, most: int) -> str:
    """A name of at most ``most`` bytes (UTF-8), with a digest of the rest if it is longer."""
    whole = os.fsencode(name)
    if len(whole) <= most:
        return name
    return f"{whole[: most - 17].decode('utf-8', 'ignore')}~{hashlib.sha256(whole).hexdigest()[:16]}"


def remove_remains(folder: str | Path, shared: bool = False) -> None:
    """Remove the temporary files of killed writers in a folder and its subfolders.

    Args:
        folder: the folder.
        shared: whether other processes may write there; theirs are left.
    """
    for path in Path(folder).rglob(".*.part"):
        match = _REMAINS.fullmatch(path.name)
        if match and not (shared and not _is_abandoned(path, int(match[2]), match[3])):
            remove(path)


def remove_abandoned(path: str | Path) -> None:
    """Remove the temporary files that killed writers of this file or folder have left."""
    path = Path(path)
    name = shortened(path.name, _LONGEST)
    for folder in {path.parent, path}:
        with suppress(OSError):
            for part in folder.glob(".*.part"):
                match = _REMAINS.fullmatch(part.name)
                if match and final_name(match[1]) == name and _is_abandoned(part, int(match[2]), match[3]):
                    remove(part)


def _machine() -> str:
    """What process numbers refer to: the host, and the container."""
    try:
        return f"{socket.gethostname()}-{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:  # not Linux
        return socket.gethostname()


def _is_abandoned(part: Path, process: int, machine: str | None) -> bool:
    """Whether no process writes a file or folder any more; names of former versions do not say on which machine."""
    if machine != _machine():
        folders = [part, *(Path(place) for place, _, _ in os.walk(part))]
        with suppress(OSError):  # its writer has just finished it
            return time.time() - max(folder.stat().st_mtime for folder in folders) > _ABANDONED
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except (OverflowError, PermissionError):
        pass
    return False
