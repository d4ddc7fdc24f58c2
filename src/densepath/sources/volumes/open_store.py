"""The index of a store of volumes: opening it, and the window of its volumes."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from densepath.core.errors import UserError, counted, errors_as
from densepath.core.records import CONFIG
from densepath.sources.listing import matches_any
from densepath.sources.volumes.store import VOLUMES, VolumeStore
from densepath.sources.windows import percentile_window

INDEX = "volumes.json"
FORMAT, VERSION = "densepath-volumes", 1

WINDOW_SAMPLE = 64  # volumes; eight leave out whole organs where scans show different parts of the body

log = logging.getLogger(__name__)


def is_volume_store(path: str | Path) -> bool:
    """Whether a path is the folder of a store of volumes, finished or not."""
    folder = Path(path)
    return (folder / INDEX).is_file() or ((folder / VOLUMES).is_dir() and (folder / CONFIG).is_file())


def open_volumes(folder: str | Path, exclude: Sequence[str] = ()) -> VolumeStore:
    """The store of volumes in a folder. Each damaged volume is reported, and replaced in training.

    Args:
        folder: the folder.
        exclude: patterns of volumes to leave out, of their names or of their split, as if it were a folder of them.

    Raises:
        UserError: it is missing, unfinished or damaged, ``exclude`` leaves no volume, or none can be read.
    """
    folder = Path(folder)
    path = folder / INDEX
    if not is_volume_store(folder):
        there = "is not a store of volumes" if folder.exists() else "does not exist"
        raise UserError(
            f"{folder} {there}; give the folder that densepath data volumes or another verb for volumes wrote"
        )
    if not path.is_file():
        raise UserError(f"the store of volumes {folder} is unfinished; continue with the same densepath data command")
    with errors_as(lambda _: UserError(f"{path} is damaged; convert the volumes again")):
        index = json.loads(path.read_text())
        if (index["format"], index["version"]) != (FORMAT, VERSION):
            raise UserError(f"{path} is of another version of densepath; convert the volumes again")
        rows = [row for row in index["volumes"] if not _excluded(row, exclude)]
        if not rows:
            raise UserError(f"--exclude leaves out all volumes of {folder}; narrow it")
        store = VolumeStore(folder, index, rows)
    for what in store.corrupt.values():
        log.warning("damaged image: %s", what)
    if len(store.corrupt) == len(rows):
        raise UserError(f"none of the {counted(len(rows), 'volume')} of {folder} can be read; convert them again")
    return store


def _excluded(row: Mapping[str, Any], patterns: Sequence[str]) -> bool:
    name, split = str(row["name"]), str(row["split"])
    return matches_any(name, patterns) or bool(split and matches_any(f"{split}/{name}", patterns))


def shared_window(folder: Path, index: Mapping[str, Any]) -> tuple[float, float]:
    """The window of all volumes together: the percentiles of a sample of them."""
    return percentile_window(VolumeStore(folder, {**index, "window": None}, index["volumes"]), WINDOW_SAMPLE)
