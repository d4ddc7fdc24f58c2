"""The folder of features that are being computed: its record, which all processes wait for, and what a stop leaves."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from densepath.core.errors import UserError
from densepath.core.files import atomic_write, require_new_file
from densepath.core.records import CONFIG, record_text
from densepath.core.streams import say
from densepath.core.waiting import wait_for
from densepath.runs.folder import changed_options, check_run, read_config
from densepath.transfer.embed.feature_file import read_features

_FREE = ("data", "batch_size", "devices", "densepath_version")  # may change when the same command continues


def begin_record(folder: Path, record: dict[str, Any]) -> None:
    """Write what is computed, or check that it is what an earlier command has begun."""
    old = read_config(folder) or record
    if changed := changed_options(old, record, _FREE, {}):
        what = "for other images" if changed == ["names"] else f"with other values of {', '.join(changed)}"
        raise UserError(f"{folder} holds features that were begun {what}; remove it, or name another file with --out")
    if check_run(folder, record, resume=True, free=_FREE) is None:
        with atomic_write(folder / CONFIG) as part:
            part.write_text(record_text(record))


def await_record(out: Path, folder: Path, record: dict[str, Any]) -> dict[str, Any] | None:
    """Wait until the first process has begun, or has found that the features are complete.

    Args:
        out: the file of the features.
        folder: its parts.
        record: what is computed.

    Returns:
        The notes of the features if they are complete, see :func:`finished`.

    Raises:
        UserError: ``out`` is another file.
    """

    def attempt(seconds: float) -> dict[str, Any] | None:
        if out.exists():
            if written := finished(out, folder, record, first=False):
                return written
            require_new_file(out)
        if changed_options(read_config(folder) or {}, record, _FREE, {}):
            time.sleep(seconds)
            raise TimeoutError
        return None

    return wait_for(attempt, "the first process", "it has not begun; see its message, then start all processes again")


def finished(out: Path, folder: Path, record: dict[str, Any], first: bool = True) -> dict[str, Any] | None:
    """The notes of a file of features that the same command has written, if it was stopped before it removed the parts.

    Args:
        out: the file.
        folder: its parts.
        record: what is computed.
        first: whether this is the first process; another one may come when the first has removed the parts.
    """
    if not out.is_file():
        return None
    begun = read_config(folder) or (None if first else record)
    if begun is None or changed_options(begun, record, _FREE, {}):
        return None
    with suppress(UserError):  # somebody else's file
        notes = read_features(out).notes
        known = {name: notes.get(name) for name in record}
        if not changed_options(known, record, (*_FREE, "names"), {}):  # the digest of the names is not noted
            return notes
    return None


@contextmanager
def kept_if_begun(folder: Path) -> Iterator[None]:
    """After a stop, say how to continue; what an error leaves before the first block is removed."""
    try:
        yield
    except BaseException as error:
        if not any(folder.glob("[0-9]*.safetensors")):
            (folder / CONFIG).unlink(missing_ok=True)
        elif not isinstance(error, Exception):
            say("densepath: stopped; the same command continues")
        raise
