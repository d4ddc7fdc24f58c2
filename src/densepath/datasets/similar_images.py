"""Images of different splits that show the same: equal files, and thumbnails that are nearly equal."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from densepath.core.errors import UserError
from densepath.core.system import usable_cores, with_progress
from densepath.core.threads import in_threads
from densepath.sources.conversion import highest_of_bits
from densepath.sources.corrupt import CorruptImage
from densepath.sources.decode import read_header, read_image

SIDE = 32  # pixels of a thumbnail
ALIKE = 0.99  # correlation
_FLAT = 2 / 255  # standard deviation of a thumbnail that shows nothing, as a share of the range of its bits
_ROWS = 1024  # thumbnails that are compared at a time

Thumbnails = npt.NDArray[np.float32]


def thumbnails(paths: Sequence[Path]) -> Thumbnails:
    """(N, SIDE, SIDE): grey, with mean 0 and norm 1; 0 for images that are nearly uniform.

    Raises:
        UserError: an image cannot be read.
    """
    made = in_threads(_thumbnail, paths, usable_cores(), "images")
    found = list(with_progress(made, len(paths), "comparing images"))
    return np.stack(found) if found else np.zeros((0, SIDE, SIDE), np.float32)


def similar(first: Thumbnails, second: Thumbnails) -> list[tuple[int, int]]:
    """Pairs of nearly equal thumbnails, also if one is turned by quarters or mirrored.

    Returns:
        For each of the second thumbnails that has a counterpart, the positions of the best one and of itself.
    """
    best, place = np.full(len(second), -1.0), np.zeros(len(second), int)
    for flipped, k in product((second, second[:, :, ::-1]), range(4)):
        variant = np.rot90(flipped, k, (1, 2)).reshape(len(second), -1)
        for start, begin in product(range(0, len(first), _ROWS), range(0, len(second), _ROWS)):
            rows, columns = first[start : start + _ROWS].reshape(-1, SIDE * SIDE), slice(begin, begin + _ROWS)
            scores = rows @ variant[columns].T
            where, value = scores.argmax(axis=0), scores.max(axis=0)
            place[columns] = np.where(value > best[columns], start + where, place[columns])
            best[columns] = np.maximum(best[columns], value)
    return [(int(place[i]), i) for i in range(len(second)) if best[i] >= ALIKE]


def _thumbnail(path: Path) -> Thumbnails:
    try:
        wide = read_header(path).bits == 16
        pixels = read_image(path, max_side=8 * SIDE, channels=1, dtype=np.uint16 if wide else np.uint8)[..., 0]
    except CorruptImage as error:
        raise UserError(f"{error}; replace the file") from error
    picture = Image.fromarray(pixels.astype(np.float32))
    small = np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BOX))
    small = small - small.mean()
    flat = small.std() < _FLAT * (highest_of_bits(int(pixels.max())) if wide else 255)
    thumbnail: Thumbnails = np.zeros_like(small) if flat else small / np.linalg.norm(small)
    return thumbnail
