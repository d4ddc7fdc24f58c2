"""Images that could not be read when cached label maps were computed: they are tried again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from densepath.core.files import atomic_write
from densepath.sources.corrupt import CorruptLog
from densepath.sources.pixel_source import PixelSource
from densepath.sources.read_all import read_all

UNREAD = -1  # the labels of such an image, until the maps of all images are joined


def unread_rows(maps: npt.NDArray[np.int16]) -> list[int]:
    """The positions of such images among maps (N, rows, columns)."""
    rows: list[int] = np.flatnonzero(maps[:, 0, 0] == UNREAD).tolist()
    return rows


def unread_images(maps: Path) -> list[int]:
    """The positions of such images in their source, listed beside the file of the maps."""
    try:
        return [int(position) for position in json.loads(_list_of(maps).read_text())]
    except (OSError, ValueError):
        return []


def note_unread(maps: Path, positions: Sequence[int]) -> None:
    """Write the list that :func:`unread_images` reads."""
    if not positions:
        _list_of(maps).unlink(missing_ok=True)
        return
    with atomic_write(_list_of(maps)) as part:
        part.write_text(json.dumps(positions))


def readable_again(maps: Path, images: PixelSource) -> list[int]:
    """The positions of such images that can be read now."""
    if not (unread := unread_images(maps)):
        return []
    read = read_all(images, CorruptLog(len(images), quiet=True), "reading images", unread)
    return [position for position, image in zip(unread, read, strict=True) if image is not None]


def _list_of(maps: Path) -> Path:
    return maps.with_name("unread.json")
