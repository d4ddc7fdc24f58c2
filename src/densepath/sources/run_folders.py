"""Keeps pictures that densepath writes out of the images that it reads."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from densepath.core.errors import UserError
from densepath.sources.listing import Passed, list_images
from densepath.sources.path_table import PathTable

_CONFIG, _HEAD = "config.yaml", b"# densepath "  # the file that each run folder has, and how it begins


def without_runs(names: Iterable[str], top: str) -> Iterator[str]:
    """The names of images, except those in run folders at or below the folder ``top``: they are pictures of a run."""

    top, known = os.path.abspath(top), {}

    def in_run(folder: str) -> bool:
        passed = []
        while folder not in known:
            passed.append(folder)
            known[folder] = _holds_run(folder)
            if known[folder] or folder in (top, os.path.dirname(folder)):
                break
            folder = os.path.dirname(folder)
        known.update(dict.fromkeys(passed, known[folder]))
        return known[folder]

    return (name for name in names if not in_run(os.path.abspath(os.path.dirname(name))))


def list_without_runs(source: str | Path, exclude: Sequence[str] = (), passed: Passed | None = None) -> PathTable:
    """The image files of a source, as :func:`~densepath.sources.listing.list_images`, without those in run folders.

    A list or a glob says what it wants: nothing is left out of it.

    Raises:
        UserError: as there, or all images are pictures of runs.
    """
    names = list_images(source, exclude, passed)
    if not os.path.isdir(source):
        return names
    kept = PathTable.of(without_runs(names, str(source)))
    if not len(kept):
        raise UserError(f"{source} holds a run of densepath, and its images are pictures of it; name other images")
    return kept


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
