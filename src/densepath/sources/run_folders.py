"""Keeps pictures that densepath writes out of the images that it reads."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

from densepath.core.errors import UserError

_CONFIG, _HEAD = "config.yaml", b"# densepath "  # the file that each run folder has, and how it begins


def without_runs(names: Iterable[str], top: str) -> Iterator[str]:
    """The names of images, except those in run folders at or below the folder ``top``: they are pictures of a run."""

    @cache
    def in_run(folder: str) -> bool:
        above = os.path.dirname(folder)
        return _holds_run(folder) or (folder not in (top, above) and in_run(above))

    top = os.path.abspath(top)
    return (name for name in names if not in_run(os.path.abspath(os.path.dirname(name))))


def refuse_among_images(out: str | Path, *sources: str | Path) -> None:
    """Check that a picture would not be written among the images of a source, and be read as one of them next time.

    Args:
        out: the file or folder to write.
        sources: folders and globs; others are no obstacle.

    Raises:
        UserError: it lies in one of the folders, or matches one of the globs.
    """
    place = Path(out).resolve()
    for source in sources:
        if os.path.isdir(source):
            among = place.is_relative_to(Path(source).resolve())
        else:
            among = place != Path(source).resolve() and fnmatchcase(str(place), os.path.abspath(source))
        if among:
            raise UserError(f"{out} would lie among the images {source}, and become one of them; use another path")


def _holds_run(folder: str) -> bool:
    try:
        with open(os.path.join(folder, _CONFIG), "rb") as file:
            return file.read(len(_HEAD)) == _HEAD
    except OSError:
        return False
