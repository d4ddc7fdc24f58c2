"""Matches images with files of a folder by name."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from densepath.core.errors import UserError, refuse
from densepath.core.files import existing
from densepath.core.spelling import composed
from densepath.core.threads import in_threads


class Matches:
    """The file of each image: the one with its name in the same subfolder.

    Args:
        folder: the folder that holds the files.
        above: number of leading parts of an image's path that are not below the images' own folder.
        suffix_of: path of each file below the folder, without suffix -> its suffix.
    """

    def __init__(self, folder: Path, above: int, suffix_of: Mapping[str, str]) -> None:
        self.folder = folder
        self.above = above
        self.suffix_of = suffix_of

    def path(self, name: str) -> Path:
        """The file of an image, given the image's path."""
        key = _key(name, self.above)
        return self.folder / existing(self.folder, key + self.suffix_of[key])


def match_names(names: Iterable[str], folder: Path, suffixes: tuple[str, ...]) -> Matches:
    """Find the file of each image in a folder.

    The images' own folder is not known: it is the longest one for which every image has a file.

    Args:
        names: paths of the images; they are iterated several times.
        folder: the folder of the files, which may be in subfolders.
        suffixes: suffixes of the files.

    Raises:
        UserError: an image has no file, two images have the same file, or two files have the same name.
    """
    suffix_of: dict[str, str] = {}

    def index(folder: Path) -> None:
        _index(folder, suffixes, suffix_of)

    next(in_threads(index, [folder], 1, f"list of the files in {folder}", sign=suffix_of.__len__))
    depths = range(min(_key(name).count("/") for name in names) + 1)
    for above in depths:  # leading folders of the images that do not occur below this folder
        if all(_key(name, above) in suffix_of for name in names):
            matches = Matches(folder, above, suffix_of)
            _check_single(names, matches)
            return matches
    missing = ([name for name in names if _key(name, above) not in suffix_of] for above in depths)
    refuse(min(missing, key=len), f"images without a label map in {folder}", "give every image a map with its name")
    raise AssertionError("there is at least one image")


def _index(folder: Path, suffixes: tuple[str, ...], suffix_of: dict[str, str]) -> None:
    """Add the path of each file below the folder, without suffix -> its suffix."""
    spellings: dict[str, str] = {}  # one string for all files
    for path in _files(folder, suffixes):
        key, suffix = _key(path), os.path.splitext(path)[1]
        if key in suffix_of:
            first, second = sorted((folder / (key + suffix_of[key]), folder / path))
            raise UserError(f"{first} and {second} have the same name; keep one of them")
        suffix_of[key] = spellings.setdefault(suffix, suffix)


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
    seen: set[str] = set()
    twice: set[str] = set()
    for key in (_key(name, matches.above) for name in names):
        (twice if key in seen else seen).add(key)
    several = sorted(str(matches.folder / (key + matches.suffix_of[key])) for key in twice)
    refuse(several, "label maps that belong to several images", "put them into the same subfolders as the images")


def _key(name: str, above: int = 0) -> str:
    """A path without its suffix and its first ``above`` parts, in one Unicode normalization."""
    path = composed(os.path.splitext(name)[0])
    parts = [part for part in path.split("/") if part not in ("", ".")]
    return "/".join(parts[above:])
