"""Checkpoints on disk: whole or not there, sealed with a checksum, loaded without running code.

A checkpoint is an ordinary file of ``torch.save``: ``torch.load(path, weights_only=True)`` reads it. Its checksum is
in the comment at the end of the ZIP archive.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import torch

from densepath.core.errors import UserError, errors_as
from densepath.core.files import atomic_write

CHECKPOINTS = "checkpoints"  # in a run folder
LAST, PREVIOUS, BEST = "last.ckpt", "previous.ckpt", "best.ckpt"

_FORMAT = "densepath checkpoint 1"
_PREFIX = b"sha256:"
_SEAL_BYTES = len(_PREFIX) + 64
_NO_COMMENT = b"\0\0"  # the length of the comment is the last field of an archive
_CHUNK = 1 << 22

_log = logging.getLogger(__name__)


def write_checkpoint(folder: Path, state: dict[str, Any], best: bool = False) -> Path:
    """Write ``last.ckpt``; the former one becomes ``previous.ckpt``, unless it is damaged.

    Args:
        folder: the folder of a run's checkpoints.
        state: tensors, numbers, strings, and lists and dictionaries of them.
        best: whether ``best.ckpt`` becomes a copy of it, before: a run that ends in between continues from the former
            checkpoint, finds the same state again and copies it then. Meanwhile there is only ``previous.ckpt``.

    Raises:
        UserError: the file cannot be written, e.g. because the disk is full.
    """
    last, handled = folder / LAST, sys.exception()
    try:
        with atomic_write(last) as part:
            with part.open("wb") as file:
                torch.save({"format": _FORMAT, **state}, file)
            _seal(part)
            if _is_whole(last):  # a damaged one must not replace the checkpoint that the run continued from
                os.replace(last, folder / PREVIOUS)  # before the copy, so that the disk needs room for four checkpoints
            if best:
                with atomic_write(folder / BEST) as copy:
                    shutil.copyfile(part, copy)
    except (OSError, RuntimeError, UserError) as error:  # a UserError comes from the file system, not from torch
        first = _first_cause(error, handled)
        why = (str(first).splitlines() or [type(first).__name__])[0]
        then = "continue" if has_checkpoint(folder) else "start again"
        raise UserError(
            f"cannot write the checkpoint {last} ({why}); make room or fix the folder, then {then} with --resume"
        ) from error
    return last


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read and verify one checkpoint; its tensors are on the CPU.

    Raises:
        UserError: it is missing, truncated or damaged, or another program wrote it.
    """
    if not path.is_file():
        raise UserError(f"there is no checkpoint {path}; name a run that has one")
    _verify(path)
    with errors_as(lambda _: UserError(f"{path} is not a checkpoint of densepath; use one that densepath wrote")):
        state = torch.load(path, map_location="cpu", weights_only=True)
    known = isinstance(state, dict) and state.get("format") == _FORMAT
    if not (known and isinstance(state.get("step"), int) and isinstance(state.get("state_dict"), dict)):
        raise UserError(f"{path} is not a checkpoint of this version of densepath; use one that it wrote")
    return state


def has_checkpoint(folder: Path) -> bool:
    """Whether there is a checkpoint to continue from, readable or not."""
    return any((folder / name).exists() for name in (LAST, PREVIOUS))


def is_trained(out: Path, result: str | Path) -> bool:
    """Whether a training in a folder has written its result; what a kill has then left of its checkpoints is removed.

    Args:
        out: the folder of the training.
        result: the file of the trained network, below the folder.
    """
    done = (out / result).is_file()
    if done:
        shutil.rmtree(out / CHECKPOINTS, ignore_errors=True)
    return done


def newest_checkpoint(folder: Path) -> dict[str, Any] | None:
    """The last checkpoint of a run, or the one before if the last is damaged; None if there is none.

    Raises:
        UserError: there are checkpoints, but none can be read.
    """
    paths = [folder / name for name in (LAST, PREVIOUS) if (folder / name).exists()]
    for path in paths:
        try:
            return read_checkpoint(path)
        except UserError as error:
            reason = str(error).rpartition("; ")[0]
            if path == paths[-1]:
                raise UserError(
                    f"{reason}; no checkpoint there can be read, so name another folder, or remove {folder.parent} to "
                    "start the run again"
                ) from error
            _log.warning("%s; continuing from %s", reason, PREVIOUS)
    return None


def _digest(path: Path, length: int) -> str:
    """SHA-256 of the first ``length`` bytes of a file, as they were before it was sealed."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while length > 0:
            chunk = file.read(min(_CHUNK, length))
            if not chunk:
                break
            digest.update(chunk)
            length -= len(chunk)
    digest.update(_NO_COMMENT)
    return digest.hexdigest()


def _seal(path: Path) -> None:
    """Put the checksum of a ZIP archive without a comment into its comment."""
    length = path.stat().st_size - len(_NO_COMMENT)
    seal = _PREFIX + _digest(path, length).encode()
    with path.open("r+b") as file:
        file.seek(length)
        if file.read() != _NO_COMMENT:
            raise RuntimeError("torch.save did not write a ZIP archive")
        file.seek(length)
        file.write(len(seal).to_bytes(2, "little") + seal)


def _first_cause(error: BaseException, handled: BaseException | None) -> BaseException:
    """The first error of saving: torch raises another one during its clean-up.

    Args:
        error: the last one.
        handled: why the run was ending already when it was saved.
    """
    while error.__context__ is not None and error.__context__ is not handled:
        error = error.__context__
    return error


def _is_whole(path: Path) -> bool:
    try:
        _verify(path)
    except (UserError, FileNotFoundError):
        return False
    return True


def _verify(path: Path) -> None:
    length = path.stat().st_size - _SEAL_BYTES - len(_NO_COMMENT)
    seal = b""
    if length > 0:
        with path.open("rb") as file:
            file.seek(length + len(_NO_COMMENT))
            seal = file.read()
    if not seal.startswith(_PREFIX):
        raise UserError(f"{path} is truncated, or is not a checkpoint of densepath; use another one")
    if seal.removeprefix(_PREFIX).decode("ascii", errors="replace") != _digest(path, length):
        raise UserError(f"{path} is damaged: its checksum is wrong; use another one")
