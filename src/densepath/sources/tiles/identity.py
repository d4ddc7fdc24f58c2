"""What a slide is known by, and its record in a folder of results, which says of which slide they are."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from densepath.sources.patience import patiently
from densepath.sources.slides.all_files import files_of

_SAMPLE = 2**16  # bytes at both ends of a file, by which a changed one is noticed
UNREADABLE = [-1, 0]  # the numbers of a file that cannot be opened


def identity_of(*paths: str | Path | None, whole: bool = False) -> list[int]:
    """Numbers that change if files do, but not if they are moved or copied: their sizes, and digests of their ends.

    Args:
        paths: the files; None is left out.
        whole: digest all of their bytes; those of small files are the same.
    """
    found = []
    for path in paths:
        if path is None:
            continue
        try:
            found += patiently(str(path), partial(_numbers, path, whole))
        except OSError:
            found += UNREADABLE
    return found


def _numbers(path: str | Path, whole: bool) -> list[int]:
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        digest = zlib.crc32(file.read(_SAMPLE))
        if whole:
            digest = zlib.crc32(file.read(max(0, size - 2 * _SAMPLE)), digest)
        file.seek(max(0, size - _SAMPLE))
        return [size, zlib.crc32(file.read(_SAMPLE), digest)]


def identity_of_slide(path: str | Path) -> list[int]:
    """Two numbers that change if any file of a slide does, see :func:`identity_of`; [-1, 0] if one cannot be read."""
    try:
        found = identity_of(*files_of(path))
    except OSError:
        return [*UNREADABLE]
    if UNREADABLE[0] in found[::2]:
        return [*UNREADABLE]
    return found if len(found) == 2 else [sum(found[::2]), zlib.crc32(repr(found).encode())]


def is_identity(recorded: Any, identity: Sequence[Any], path: str | Path, first: int = 0) -> bool:
    """Whether a recorded identity is that of a slide: earlier versions knew one of several files by the named one only.

    A slide of which a file cannot be opened now, such as one on a disk that is not mounted, is taken for the recorded
    one: what was made of it must not be removed.

    Args:
        recorded: as a record has it.
        identity: that of the slide now, with the two numbers of :func:`identity_of_slide`.
        path: the slide's file.
        first: the position of these numbers.
    """
    if recorded == identity:
        return True
    if not isinstance(recorded, list) or len(recorded) != len(identity):
        return False
    if [*recorded[:first], *identity[first : first + 2], *recorded[first + 2 :]] != identity:
        return False
    return list(identity[first : first + 2]) == UNREADABLE or recorded[first : first + 2] == identity_of(path)


def record_path(out: Path, name: str) -> Path:
    """The record of a slide in the folder of the tiles."""
    return out / "records" / f"{name}.json"


def read_record(out: Path, name: str) -> dict[str, Any] | None:
    """The row of a slide with its identity; None if it is not done."""
    try:
        record = json.loads(record_path(out, name).read_bytes())
        return record if record["slide"] == name and "identity" in record else None
    except (OSError, ValueError, LookupError, TypeError):
        return None


def scan_corner_of(out: Path, name: str) -> Sequence[int]:
    """The x and y at which the scanned area of a slide begins, in pixels of level 0, by its record; 0 if unknown."""
    corner: Sequence[int] = (read_record(out, name) or {}).get("scan_corner", (0, 0))
    return corner
