"""Digests of files and of the pixels in them, so that equal data are known as equal and other data as other."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from densepath.core.errors import UserError
from densepath.core.files import atomic_write
from densepath.core.system import usable_cores, with_progress
from densepath.sources.corrupt import CorruptImage
from densepath.sources.decode import read_image
from densepath.sources.packing import SUFFIX, open_store

SHOWN_DIGITS = 10  # of a digest, where people read it
_BYTES = 16  # of a digest: two of 10^9 different images agree by chance once in 10^20 times


@dataclass(frozen=True)
class FileDigest:
    """What a file holds.

    Args:
        content: the digest of its bytes.
        pixels: where asked for, the digests of the pixels of its images: one for an image, none for a damaged one, and
            as many as there are for a packed store.
    """

    content: str
    pixels: tuple[str, ...]


class Digests:
    """Digests of files, remembered by their size and time of change.

    Args:
        path: a JSON file that remembers them between calls; it is made when something is new.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        try:
            known = json.loads(self._path.read_text())
            self._known = {str(name): tuple(entry) for name, entry in known.items() if len(entry) == 4}
        except (OSError, ValueError, AttributeError, TypeError):  # there is none, or it can be made anew
            self._known = {}

    def of(self, files: Sequence[str | Path], what: str, *, pixels: bool = False) -> list[FileDigest]:
        """The digests of files, in their order.

        Args:
            files: any files.
            what: they are, shown while it takes time.
            pixels: look into them for images, too.

        Raises:
            UserError: one of them cannot be read.
        """
        names = [os.path.abspath(file) for file in files]
        try:
            stamps = {name: _stamp(name) for name in names}
            new = [name for name, stamp in stamps.items() if not self._knows(name, stamp, pixels)]
            with ThreadPoolExecutor(usable_cores()) as pool:
                found = with_progress(pool.map(partial(_digest, pixels=pixels), new), len(new), what)
                self._known |= {name: (*stamps[name], *digest) for name, digest in zip(new, found, strict=True)}
        except OSError as error:
            raise UserError(f"{error.filename} cannot be read ({error.strerror}); check it") from error
        if new:
            with atomic_write(self._path) as part:
                part.write_text(json.dumps(self._known))
        return [FileDigest(self._known[name][2], tuple(self._known[name][3] or ())) for name in names]

    def _knows(self, name: str, stamp: tuple[int, int], pixels: bool) -> bool:
        entry = self._known.get(name, (None,) * 4)
        return entry[:2] == stamp and not (pixels and entry[3] is None)


def digest_of(parts: Iterable[str | bytes]) -> str:
    """One digest of several texts, in their order."""
    digest = hashlib.blake2b(digest_size=_BYTES)
    for part in parts:
        data = part if isinstance(part, bytes) else part.encode("utf-8", "surrogateescape")
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def pixel_digest(image: npt.NDArray[np.uint8]) -> str:
    """The digest of an image (H, W, 3) uint8: the same for it turned by quarters and mirrored, as tissue may be."""
    turned = (np.rot90(side, quarter) for side in (image, image[:, ::-1]) for quarter in range(4))
    return min(digest_of([str(pixels.shape), pixels.tobytes()]) for pixels in turned)


def _stamp(name: str) -> tuple[int, int]:
    status = os.stat(name)
    return status.st_size, status.st_mtime_ns


def _digest(name: str, pixels: bool) -> tuple[str, list[str] | None]:
    with open(name, "rb") as file:
        content = hashlib.file_digest(file, partial(hashlib.blake2b, digest_size=_BYTES))
    return content.hexdigest(), _pixels(name) if pixels else None


def _pixels(name: str) -> list[str]:
    if not name.lower().endswith(SUFFIX):
        try:
            return [pixel_digest(read_image(name))]
        except CorruptImage:
            return []
    store = open_store(name)
    return [pixel_digest(_as_decoded(store.read(position))) for position in range(len(store))]


def _as_decoded(tile: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """A packed tile as :func:`read_image` gives its file: 8-bit RGB."""
    pixels = (tile if tile.dtype == np.uint8 else tile >> 8).astype(np.uint8)
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels
