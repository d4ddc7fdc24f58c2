"""Keeps pictures that densepath writes out of the images that it reads next time."""

from __future__ import annotations

import os
from fnmatch import fnmatchcase
from pathlib import Path

from densepath.core.errors import UserError


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
