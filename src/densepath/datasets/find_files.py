"""Finds the image files that annotations mean: names in them are often those of another machine."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from urllib.parse import unquote

from densepath.core.columns import SPLIT_OF
from densepath.core.errors import UserError, counted, first_few
from densepath.core.path_ends import PathEnds
from densepath.core.paths import AnyPath
from densepath.core.spelling import composed
from densepath.core.streams import say
from densepath.sources.listing import SUFFIXES
from densepath.sources.slides.find import SUFFIXES as SLIDES

_KNOWN = {*SUFFIXES, *SLIDES}
_SPLIT = re.compile(rf"(?:^|[^a-z])({'|'.join(SPLIT_OF)})(?:\d{{4}})?(?=[^a-z]|$)")


def split_named(name: str) -> str | None:
    """The split that a name of a file or a folder contains as a word: train2017, valid, instances_test.json."""
    found = _SPLIT.findall(name.lower())
    return SPLIT_OF[found[-1]] if found else None


def split_in_folders(path: Path, root: Path) -> str | None:
    """The split in the names of the folders between a folder and a file in it, or of the folder if there are none.

    The nearest folder that is called like a split (val, train2017) counts, or else the folder of the file, if its name
    contains one: validation_site_B further above says nothing of a split.
    """
    folders = path.parent.relative_to(root).parts[::-1] or (path.parent.name,)
    exact = (_SPLIT.fullmatch(name.lower()) for name in folders)
    return next((SPLIT_OF[found[1]] for found in exact if found), None) or split_named(folders[0])


def image_folder(source: Path, images: AnyPath | None) -> Path:
    """The folder of the images of annotations: the given one, or that of the annotations.

    Raises:
        UserError: it is not a folder.
    """
    folder = Path(images) if images is not None else source if source.is_dir() else source.parent
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give the one that holds the images")
    return folder


class FileIndex:
    """Files by the last parts of their paths.

    Args:
        files: the files.
        stems: whether to compare names without the suffix of an image or a slide.

    Attributes:
        count: the number of files.
    """

    def __init__(self, files: Iterable[Path], stems: bool = False) -> None:
        self._stems, self._folded = stems, defaultdict[str, set[str]](set)
        self._other_case: dict[str, Path] = {}
        self._files: dict[str, list[Path]] = defaultdict(list)
        self.count, ends = 0, []
        for path in files:
            self.count += 1
            for order, parts in enumerate(_readings(str(path))):
                for key in {self._key(parts[-1]), parts[-1]}:
                    ends.append(((*parts[:-1], key), (path, parts, order)))
                    self._files[key].append(path)
                    self._folded[key.casefold()].add(key)
        self._ends = PathEnds(ends)

    def find(self, name: str, near: Path | None = None, split: str | None = None) -> list[Path]:
        """The files that a name means: none, one, or several that fit equally well.

        The most parts of the path must agree, from the last one on, as they are or as those of a URL; then the split;
        then the folder. Where no file has the name, the only one that has it in other capitals.

        Args:
            name: a path or a URL, absolute or relative, with slashes or backslashes.
            near: the folder of the file that has the name in it.
            split: the split that the name belongs to.
        """
        ranked = []
        for place, parts in enumerate(_readings(name)):
            key = parts[-1] if parts[-1] in self._files else self._key(parts[-1])
            for path, other, order in self._ends.closest((*parts[:-1], key)):
                fits = split is not None and any(split_named(part) == split for part in other[:-1])
                shared = len(os.path.commonpath([os.path.abspath(near), os.path.abspath(path)])) if near else 0
                ranked.append(((_agreeing(parts, other), -place - order, fits, shared), path))
        best = max((rank for rank, _ in ranked), default=None)
        if best is None:
            return self._in_other_case(name)
        return list(dict.fromkeys(path for rank, path in ranked if rank == best))

    def report(self) -> None:
        """Print which names were found in other capitals only."""
        if self._other_case:
            shown = first_few([f"{name} is {path.name}" for name, path in self._other_case.items()])
            say(f"densepath: {counted(len(self._other_case), 'name')} in other capitals than the file: {shown}")

    def _in_other_case(self, name: str) -> list[Path]:
        """The one file whose name differs in capitals only, as on Windows; none if there are several."""
        asked = {key.casefold() for parts in _readings(name) for key in (parts[-1], self._key(parts[-1]))}
        keys = {key for one in asked for key in self._folded.get(one, ())}
        found = (path for key in keys for path in self._files[key])
        first = next(found, None)
        if first is None or any(path != first for path in found):
            return []
        self._other_case[name] = first
        return [first]

    def _key(self, name: str) -> str:
        stem, suffix = os.path.splitext(name)
        return stem if self._stems and suffix.lower() in _KNOWN else name  # "tile_0.5" has no suffix


def in_other_folders(found: Iterable[tuple[str, Path]]) -> list[str]:
    """Names whose files are probably not meant: their folders differ, and those of names beside them agree.

    Args:
        found: names, and their files. Of slide_a/1.png and slide_a/2.png with the files slide_a/1.png and
            slide_b/2.png, the second is such a name. Where all folders differ, the names are of another machine.

    Returns:
        The names, each with its file.
    """
    most: dict[str, int] = defaultdict(int)
    ranked = []
    for name, path in found:
        pairs = list(product(_readings(name), _readings(str(path))))
        parts, other = max(pairs, key=lambda pair: _agreeing(*pair))
        folder, depth = "/".join(parts[:-1]), _agreeing(parts, other)
        most[folder] = max(most[folder], depth)
        ranked.append((folder, depth, len(other) > depth + 1, f"{name} ({path})"))
    return [shown for folder, depth, differs, shown in ranked if differs and depth < most[folder]]


def _agreeing(parts: list[str], other: list[str]) -> int:
    """The number of folders directly above two files that have the same names."""
    above = zip(reversed(parts[:-1]), reversed(other[:-1]), strict=False)
    return next((n for n, (a, b) in enumerate(above) if a != b), min(len(parts), len(other)) - 1)


def _readings(name: str) -> list[list[str]]:
    """The parts of a name as a path, and as a URL: Label Studio has /data/local-files/?d=images/a%20b.png."""
    path, _, query = name.partition("?")
    path = query.partition("d=")[2] if "d=" in query else path if query else name
    return [_split(text) or [""] for text in dict.fromkeys((name, path, unquote(path)))]


def _split(path: str) -> list[str]:
    """The parts of a path, in one Unicode normalization."""
    return [part for part in re.split(r"[\\/]+", composed(path)) if part not in ("", ".", "..")]
