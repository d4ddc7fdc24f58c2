"""Images that could not be read when cached label maps were computed, but may be readable later."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from densepath.core.files import atomic_write

UNREAD = -1  # the labels of such an image, until the maps of all images are joined


def unread_rows(maps: npt.NDArray[np.int16]) -> list[int]:
    """The positions of such images among maps (N, rows, columns)."""
    rows: list[int] = np.flatnonzero(maps[:, 0, 0] == UNREAD).tolist()
    return rows


def unread_images(maps: Path, images: int) -> list[int]:
    """The positions of such images in their source of some images, listed beside the file of the maps."""
    try:
        listed = json.loads(_list_of(maps).read_text())
        return [int(position) for position in listed if position in range(images)]
    except (OSError, ValueError, TypeError):
        return []


def note_unread(maps: Path, positions: Sequence[int]) -> None:
    """Write the list that :func:`unread_images` reads."""
    if not positions:
        _list_of(maps).unlink(missing_ok=True)
        return
    with atomic_write(_list_of(maps)) as part:
        part.write_text(json.dumps(positions))


def _list_of(maps: Path) -> Path:
    return maps.with_name("unread.json")
