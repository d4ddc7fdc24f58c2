"""The image files of a folder, a text list or a glob pattern, in a deterministic order."""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path, PurePath
from typing import TypeVar

from densepath.core.errors import UserError, counted, first_few
from densepath.core.records import CONFIG, is_record
from densepath.core.spelling import composed
from densepath.core.threads import in_threads
from densepath.sources.lists import read_list
from densepath.sources.path_table import PathTable

T = TypeVar("T")

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp", ".dcm", ".dicom")
LIST_SUFFIXES = (".txt", ".csv", ".tsv")
_KINDS = "PNG, JPEG, TIFF, WebP, BMP or DICOM image"
_SHOWN = 4  # kinds of files
_FOLDERS = 256  # whose answers are remembered
_RUNS = "folders of results"
_AGAIN = "links to folders that are read already"
_BROKEN, _SPECIAL = "broken links", "special files"
_PLURAL = re.compile(r"\b(file|image|link)s\b")
_ONE = {_RUNS: "folder of results", _AGAIN: "link to a folder that is read already"}


@dataclass
class Passed:
    """What was passed over while images were listed.

    Args:
        kinds: number of other files by suffix, of broken links, of pipes and the like, of links to folders that are
            read already, and of folders that hold a run of densepath.
        excluded: number of images that match an excluded pattern.
        read: number of folders and images that were read so far.
        unused: the patterns that match no image.
    """

    kinds: Counter[str] = field(default_factory=Counter)
    excluded: int = 0
    read: int = 0
    unused: list[str] = field(default_factory=list)

    def describe(self) -> str:
        """One phrase, empty if nothing was passed over."""
        parts = [counted(self.excluded, "excluded file")] * bool(self.excluded) + self._others()
        parts += [f"nothing by --exclude {pattern}" for pattern in self.unused]
        return first_few(parts, _SHOWN)

    def also(self) -> str:
        """The end of a line that says what is read, empty if nothing was passed over."""
        phrase = self.describe()
        return f"; passed over: {phrase}" if phrase else ""

    def only(self) -> str:
        """A phrase for a source without an image: what else is in it."""
        return f", only {first_few(self._others(), _SHOWN)}" if self.kinds else ""

    def leaves_out(self, inside: str, exclude: Sequence[str]) -> bool:
        """Whether a pattern matches a path below the folder; such patterns are noted as used."""
        found = matches_any(inside, exclude)
        if found:
            self.unused = [pattern for pattern in self.unused if not matches_any(inside, [pattern])]
        return found

    def _others(self) -> list[str]:
        return [
            counted(n, _ONE.get(kind, _PLURAL.sub(r"\1", kind, count=1)), kind) for kind, n in self.kinds.most_common()
        ]


def find_images(source: str | Path, exclude: Sequence[str] = ()) -> list[Path]:
    """The image files of a source. Arguments and errors as for :func:`list_images`."""
    return [Path(name) for name in list_images(source, exclude)]


def list_images(
    source: str | Path,
    exclude: Sequence[str] = (),
    passed: Passed | None = None,
    runs: bool = True,
    suffixes: Sequence[str] = SUFFIXES,
    kinds: str = _KINDS,
) -> PathTable:
    """The image files of a source, in a compact table. A disk that hangs is reported.

    Args:
        source: one of
            a folder: the images in it and its subfolders, recognized by their suffix; sorted by the characters of their
            names, without hidden files and folders, following links to each folder once;
            a text list (.txt, .csv, .tsv): see :func:`densepath.sources.lists.read_list`;
            a glob pattern (``**`` crosses folders): the images that match, sorted;
            one image.
        exclude: patterns with ``*`` and ``?``; an image is left out if one matches its path relative to the source's
            folder, a folder above it, or its name. A folder that one matches may be unreadable.
        passed: what was passed over is added to it.
        runs: whether images in folders that hold a run of densepath are included: they are pictures of it.
        suffixes: the endings of images.
        kinds: their formats, for messages.

    Raises:
        UserError: the source is missing or cannot be read, contains no image, or lists missing files.
        Stuck: nothing was read within the limit of :func:`~densepath.core.waiting.wait_for`.
    """
    passed = passed or Passed()

    return _while_reading(lambda: _list(str(source), exclude, passed, runs, suffixes, kinds), source, passed)


def _list(
    text: str, exclude: Sequence[str], passed: Passed, runs: bool, suffixes: Sequence[str], kinds: str
) -> PathTable:
    remedy = ""
    if os.path.isdir(text):
        found, root = _walk(text, suffixes, passed, runs, exclude), text
        empty = f"{text} and its subfolders contain no {kinds}"
    elif text.lower().endswith(LIST_SUFFIXES):
        found, root = read_list(text, suffixes), os.path.dirname(text)
        empty, remedy = f"the list {text} names no image", "give one path per line"
    else:
        matches = [text] if os.path.isfile(text) else sorted(glob.glob(text, recursive=True))
        if not matches:
            brackets = "; in a pattern, [abc] is one of these characters, and [[] is [" * ("[" in text)
            what = text or "an empty path"
            raise UserError(f"{what} does not exist; give a folder, a text list or a pattern{brackets}")
        if all(map(os.path.isdir, matches)):
            raise UserError(f"{text} matches only folders; name the folder, such as {matches[0]}")
        found = _matched(matches, suffixes, passed)
        root = os.path.commonpath([os.path.dirname(name) for name in matches]) if len(matches) > 1 else ""
        found = found if runs or len(matches) == 1 else _outside_runs(found, root, passed)
        empty = f"{text} is not a {kinds}, a folder or a text list (.txt, .csv) of images"
    passed.unused = list(exclude)
    names = PathTable.of(_without(found, exclude, root, passed))
    if not len(names):
        if passed.kinds[_RUNS] and not passed.excluded:
            raise UserError(f"{text} holds a run of densepath, and its images are pictures of it; name other images")
        if passed.excluded:
            raise UserError(f"--exclude leaves out all images of {text}; narrow it")
        if os.path.islink(text) and not os.path.exists(text):
            raise UserError(f"{text} is a link to {os.readlink(text)}, which does not exist; correct it")
        remedy = remedy or ("correct the links" if passed.kinds[_BROKEN] else "check the path")
        raise UserError(f"{empty}{passed.only()}; {remedy}")
    return names


def _matched(names: Iterable[str], suffixes: Sequence[str], passed: Passed) -> Iterator[str]:
    """The images among the names that match a pattern."""
    for name in names:
        if name.lower().endswith(tuple(suffixes)):
            if os.path.isfile(name):
                yield name
            elif not os.path.isdir(name):
                passed.kinds[_BROKEN if os.path.islink(name) else _SPECIAL] += 1


def _outside_runs(names: Iterable[str], root: str, passed: Passed) -> Iterator[str]:
    """The files without those in folders below ``root`` that hold a run of densepath."""
    known = {os.path.normpath(root): False, "": False, os.sep: False}

    def inside(folder: str) -> bool:
        if folder not in known:
            known[folder] = inside(os.path.dirname(folder)) or is_record(os.path.join(folder, CONFIG))
            passed.kinds[_RUNS] += known[folder] and not known[os.path.dirname(folder)]
        return known[folder]

    return (name for name in names if not inside(os.path.normpath(os.path.dirname(name))))


def walk(folder: str | Path, suffixes: Sequence[str], runs: bool = True, passed: Passed | None = None) -> list[str]:
    """The files of some suffixes below a folder, depth first, sorted by the characters of their names. A disk that
    hangs is reported.

    Hidden files and folders are left out. Each folder is read once: a link to one that is read anyway is not followed.
    With ``runs=False``, folders that hold a run of densepath are left out. What was passed over is added to ``passed``.

    Raises:
        UserError: a folder cannot be read.
        Stuck: nothing was read within the limit of :func:`~densepath.core.waiting.wait_for`.
    """
    passed = passed or Passed()
    return _while_reading(lambda: list(_walk(folder, suffixes, passed, runs)), folder, passed)


def _while_reading(read: Callable[[], T], source: str | Path, passed: Passed) -> T:
    """What a function returns that reads folders, as long as it reads any."""
    what = f"list of the files in {source}"
    return next(in_threads(lambda call: call(), [read], 1, what, sign=lambda: passed.read))


def _walk(
    folder: str | Path, suffixes: Sequence[str], passed: Passed, runs: bool, exclude: Sequence[str] = ()
) -> Iterator[str]:
    root = os.path.realpath(folder)
    read = {_identity(root)}
    stack: list[Iterator[os.DirEntry[str]]] = []

    def enter(path: str) -> None:
        passed.read += 1
        try:
            entries = _entries(path)
        except UserError:
            if not passed.leaves_out(os.path.relpath(path, folder), exclude):
                raise
            return
        if not runs and any(entry.name == CONFIG and is_record(entry.path) for entry in entries):
            passed.kinds[_RUNS] += 1
        else:
            stack.append(iter(entries))

    enter(os.fspath(folder))
    while stack:
        entry = next(stack[-1], None)
        if entry is None:
            stack.pop()
        elif not _is(entry, os.DirEntry.is_dir):
            if not entry.name.lower().endswith(tuple(suffixes)):
                passed.kinds[f"{os.path.splitext(entry.name)[1].lower() or 'other'} files"] += 1
            elif _is(entry, os.DirEntry.is_file):
                yield entry.path
            else:
                passed.kinds[_BROKEN if entry.is_symlink() else _SPECIAL] += 1
        elif (entry.is_symlink() and _is_read(entry.path, root)) or (identity := _identity(entry.path)) in read:
            passed.kinds[_AGAIN] += 1
        else:
            read.add(identity)
            enter(entry.path)


def _is(entry: os.DirEntry[str], what: Callable[[os.DirEntry[str]], bool]) -> bool:
    """Whether an entry is a folder or a file; a link that leads to itself is neither."""
    try:
        return what(entry)
    except OSError:
        return False


def _identity(folder: str) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _is_read(link: str, root: str) -> bool:
    """Whether a link leads to a folder that is read without it: below the root, and not hidden."""
    place = os.path.relpath(os.path.realpath(link), root)
    return not any(part.startswith(".") and part != "." for part in place.split(os.sep))


def _entries(folder: str) -> list[os.DirEntry[str]]:
    """The visible entries of a folder, sorted by their names."""
    try:
        with os.scandir(folder) as entries:
            return sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name)
    except OSError as error:
        raise UserError(f"the folder {folder} cannot be read ({error.strerror}); check its permissions") from error


def _without(names: Iterable[str], exclude: Sequence[str], root: str, passed: Passed) -> Iterator[str]:
    """The names that no pattern matches."""
    for name in names:
        passed.read += 1
        inside = os.path.relpath(name, root or ".") if exclude else ""
        if exclude and passed.leaves_out(inside, exclude):
            passed.excluded += 1
        else:
            yield name


def matches_any(name: str, patterns: Sequence[str]) -> bool:
    """Whether a pattern matches a path, a folder above it, or the name of one of these."""
    path, asked = str(PurePath(composed(name))), tuple(composed(pattern).rstrip("/") for pattern in patterns)
    found = _matches(path, asked)
    while not found and (folder := os.path.dirname(path)) != path:
        path, found = folder, _folder_matches(folder, asked)
    return found


def _matches(path: str, patterns: tuple[str, ...]) -> bool:
    name = os.path.basename(path)
    own = (path, name) if name else (path,)
    return path not in ("", ".") and any(fnmatchcase(part, pattern) for pattern in patterns for part in own)


_folder_matches = lru_cache(_FOLDERS)(_matches)  # images of one folder come one after another
