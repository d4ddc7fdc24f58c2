"""Matches images with files of a folder by name, for millions of them in little memory."""

from __future__ import annotations

import hashlib
import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from densepath.annotations.pairs import refuse
from densepath.core.errors import UserError

_BLOCK = 2**14  # names that are processed together
_BYTES = 8  # length of a digest: the chance that two of a million names collide is 10^-7

Digests = npt.NDArray[np.uint64]


class Matches:
    """The file of each image: the one with its name in the same subfolder.

    Args:
        folder: the folder that holds the files.
        above: number of leading parts of an image's path that are not below the images' own folder.
        digests: ascending digests of the files' paths below the folder, without suffix.
        suffixes: for each digest, the number of the file's suffix.
        spellings: the suffix of each number.
    """

    def __init__(
        self,
        folder: Path,
        above: int,
        digests: Digests,
        suffixes: npt.NDArray[np.uint8],
        spellings: Sequence[str],
    ) -> None:
        self.folder = folder
        self.above = above
        self.digests = digests
        self.suffixes = suffixes
        self.spellings = spellings

    def path(self, name: str) -> Path:
        """The file of an image, given the image's path."""
        key = _parts(name)[self.above :]
        place = int(np.searchsorted(self.digests, _digest(key)))
        return self.folder / ("/".join(key) + self.spellings[int(self.suffixes[place])])


def match_names(names: Iterable[str], folder: Path, suffixes: tuple[str, ...]) -> Matches:
    """Find the file of each image in a folder.

    The images' own folder is not known: it is the longest one for which every image has a file.

    Args:
        names: paths of the images; they are iterated several times.
        folder: holds the files, also in subfolders.
        suffixes: suffixes of the files.

    Raises:
        UserError: an image has no file, two images have the same file, or two files have the same name.
    """
    digests, numbers, spellings = _index(folder, suffixes)
    fewest: list[str] | None = None
    depths = range(min(len(_parts(name)) for name in names))
    for above in depths:  # leading folders of the images that do not occur below this folder
        if all(_known(block, digests).all() for block in _blocks(names, above)):
            matches = Matches(folder, above, digests, numbers, spellings)
            _check_single(names, matches)
            return matches
    for above in depths:
        missing = [name for name in names if not _known(_array([_digest(_parts(name)[above:])]), digests).all()]
        fewest = missing if fewest is None or len(missing) < len(fewest) else fewest
    refuse(fewest or [], f"images without a label map in {folder}", "give every image a map with its name")
    raise AssertionError("there is at least one image")


def _index(folder: Path, suffixes: tuple[str, ...]) -> tuple[Digests, npt.NDArray[np.uint8], list[str]]:
    """Ascending digests of the files' names, the numbers of their suffixes, and the suffixes."""
    digests, numbers, spellings = array("Q"), array("B"), dict[str, int]()
    for path in _files(folder, suffixes):
        digests.append(_digest(_parts(path)))
        numbers.append(spellings.setdefault(os.path.splitext(path)[1], len(spellings)))
    found = np.array(digests, np.uint64)
    order = found.argsort()
    found = found[order]
    if len(twice := found[1:][found[1:] == found[:-1]]):
        first, second, *_ = sorted(
            folder / path for path in _files(folder, suffixes) if _digest(_parts(path)) == twice[0]
        )
        raise UserError(f"{first} and {second} have the same name; keep one of them")
    return found, np.array(numbers, np.uint8)[order], list(spellings)


def _files(folder: Path, suffixes: tuple[str, ...]) -> Iterator[str]:
    """The relative paths of all files below a folder; hidden files are left out."""
    folders = [""]
    while folders:
        here = folders.pop()
        with os.scandir(folder / here) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(os.path.join(here, entry.name))
                elif not entry.name.startswith(".") and os.path.splitext(entry.name)[1].lower() in suffixes:
                    yield os.path.join(here, entry.name)


def _check_single(names: Iterable[str], matches: Matches) -> None:
    keys = np.concatenate(list(_blocks(names, matches.above)))
    found, counts = np.unique(keys, return_counts=True)
    if len(twice := found[counts > 1]):
        shared = {matches.path(name) for name in names if _digest(_parts(name)[matches.above :]) in twice}
        several = [str(path) for path in sorted(shared)]
        refuse(several, "label maps that belong to several images", "put them into the same subfolders as the images")


def _blocks(names: Iterable[str], above: int) -> Iterator[Digests]:
    """The digests of the images' names, in blocks."""
    rest = iter(names)
    while block := [_digest(_parts(name)[above:]) for name in islice(rest, _BLOCK)]:
        yield _array(block)


def _known(block: Digests, digests: Digests) -> npt.NDArray[np.bool_]:
    if not len(digests):
        return np.zeros(len(block), bool)
    places = np.searchsorted(digests, block)
    return digests[np.minimum(places, len(digests) - 1)] == block


def _array(numbers: list[int]) -> Digests:
    return np.array(numbers, np.uint64)


def _parts(name: str) -> tuple[str, ...]:
    """The folders of a path, and its name without suffix."""
    return tuple(part for part in os.path.splitext(name)[0].split("/") if part not in ("", "."))


def _digest(parts: Sequence[str]) -> int:
    text = os.fsencode("/".join(parts))
    return int.from_bytes(hashlib.blake2b(text, digest_size=_BYTES).digest(), "little")
