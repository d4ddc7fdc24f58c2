"""The image files of a folder, a text list or a glob pattern, in a deterministic order."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from pathlib import Path

from densepath.core.errors import UserError, first_few
from densepath.sources.path_table import PathTable

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp")
LIST_SUFFIXES = (".txt", ".csv")
_KINDS = "PNG, JPEG, TIFF, WebP or BMP"


def find_images(source: str | Path) -> list[Path]:
    """The image files of a source. Arguments and errors as for :func:`list_images`."""
    return [Path(name) for name in list_images(source)]


def list_images(source: str | Path) -> PathTable:
    """The image files of a source, in a compact table.

    Args:
        source: one of
            a folder: the images in it and its subfolders, recognized by their suffix; sorted by the characters of their
            names, without hidden files and folders, following links;
            a text list (.txt, .csv): one path per line, absolute or relative to the list's folder, in the list's order;
            blank lines and lines that start with # are skipped;
            a glob pattern (``**`` crosses folders): the images that match, sorted;
            one image.

    Raises:
        UserError: the source is missing or cannot be read, contains no image, or lists missing files.
    """
    text = str(source)
    if os.path.isdir(text):
        names = PathTable.of(_walk(text, ()))
        empty = f"{text} and its subfolders contain no {_KINDS} image; check the path"
    elif text.lower().endswith(LIST_SUFFIXES):
        names = _listed(text)
        empty = f"the list {text} names no image; give one path per line"
    else:
        found = [text] if os.path.isfile(text) else sorted(glob.glob(text, recursive=True))
        if not found:
            raise UserError(f"{text or 'an empty path'} does not exist; give a folder, a text list or a pattern")
        names = PathTable.of(name for name in found if _is_image(name) and os.path.isfile(name))
        empty = f"{text} is not a {_KINDS} image, a folder or a text list (.txt, .csv) of images; check the path"
    if not len(names):
        raise UserError(empty)
    return names


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def _walk(folder: str, above: tuple[tuple[int, int], ...]) -> Iterator[str]:
    """Images depth first; ``above`` identifies the parent folders, to which links must not lead back."""
    try:
        status = os.stat(folder)
        with os.scandir(folder) as entries:
            visible = sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name)
    except OSError as error:
        raise UserError(f"the folder {folder} cannot be read ({error.strerror}); check its permissions") from error
    identity = (status.st_dev, status.st_ino)
    if identity in above:
        return
    for entry in visible:
        if entry.is_dir():
            yield from _walk(entry.path, (*above, identity))
        elif _is_image(entry.name) and entry.is_file():
            yield entry.path


def _listed(path: str) -> PathTable:
    missing: list[str] = []
    try:
        names = PathTable.of(_entries(path, missing))
    except OSError as error:
        raise UserError(f"the list {path} cannot be read ({error.strerror}); check the path") from error
    if missing:
        raise UserError(
            f"the list {path} names files that do not exist ({first_few(missing, separator='; ')}); "
            "correct them (paths are relative to the list's folder)"
        )
    return names


def _entries(path: str, missing: list[str]) -> Iterator[str]:
    """The files that a list names; missing ones are added to ``missing`` instead."""
    folder = os.path.dirname(path)
    with open(path, encoding="utf-8-sig", errors="surrogateescape") as lines:
        for number, line in enumerate(lines, 1):
            entry = line.strip()
            if not entry or entry.startswith("#"):
                continue
            name = os.path.join(folder, entry)
            if os.path.isfile(name):
                yield name
            else:
                missing.append(f"line {number}: {entry}")
