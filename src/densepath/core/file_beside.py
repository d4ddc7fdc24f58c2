"""A file that is written next to the one that the user names."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from densepath.core.errors import UserError
from densepath.core.files import check_writable


def file_beside(out: str | Path, suffix: str, columns: Sequence[str] = ()) -> Path:
    """The path of another file that is to be written with a result: it replaces only what an earlier call has left.

    Args:
        out: the result.
        suffix: of the other file, whose name is else that of the result.
        columns: the first columns of a table, by which an earlier one is known; a picture is one if the result exists.

    Raises:
        UserError: another file has this path, or it cannot be written.
    """
    path, what = Path(out).with_suffix(suffix), "table" if columns else "picture"
    if path.is_file() and not (_has_columns(path, columns) if columns else os.path.exists(out)):
        raise UserError(f"{path} exists, and the {what} of {out} would replace it; use another name")
    check_writable(path)
    return path


def _has_columns(path: Path, columns: Sequence[str]) -> bool:
    with path.open(encoding="utf-8", errors="replace") as file:
        return file.readline().rstrip("\r\n").split(",")[: len(columns)] == list(columns)
