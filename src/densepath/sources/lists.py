"""Text lists of image files: plain lines, or a table with a column of paths."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Sequence

from densepath.core.csv_files import encoding_of
from densepath.core.errors import UserError, first_few
from densepath.core.files import existing

_COLUMNS = ("file", "path", "image", "filename", "file_name", "filepath", "file_path", "image_path", "image_file")
_DELIMITERS = "\t;,"


def read_list(path: str, suffixes: Sequence[str]) -> Iterator[str]:
    """The files that a list names, in its order.

    A line is a path, absolute or relative to the list's folder; quotes around it are removed, and backslashes separate
    folders if there is no file with a backslash in its name. A line with several columns, separated by tabs, semicolons
    or commas, names the file in the column that the header calls ``file``, ``path``, ``image`` or the like, or else in
    its only column that ends like an image. Blank lines and lines that start with # are skipped.

    Args:
        path: the list.
        suffixes: the endings of images.

    Raises:
        UserError: the list cannot be read, names missing files, or several images in a line.
    """
    missing: list[str] = []
    try:
        yield from _files(path, suffixes, missing)
    except (OSError, UnicodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "its encoding is neither UTF-8 nor UTF-16"
        raise UserError(f"the list {path} cannot be read ({why}); check the path") from error
    if missing:
        raise UserError(
            f"the list {path} names files that do not exist ({first_few(missing, separator='; ')}); "
            "correct them (paths are relative to the list's folder)"
        )


def _files(path: str, suffixes: Sequence[str], missing: list[str]) -> Iterator[str]:
    """The files; missing ones are added to ``missing`` instead."""
    folder, column, first = os.path.dirname(path), None, True
    with open(path, encoding=encoding_of(path), errors="surrogateescape") as lines:
        for number, line in enumerate(lines, 1):
            text = line.strip()
            if not text or text.startswith("#"):
                continue
            if found := _find(folder, text):
                yield found
                first = False
                continue
            fields = _fields(text)
            images = [position for position, name in enumerate(fields) if name.lower().endswith(tuple(suffixes))]
            if first and not images and not any("/" in name for name in fields):
                first, heads = False, [name.lower() for name in fields]
                column = next((heads.index(name) for name in _COLUMNS if name in heads), None)
                continue
            first = False
            if column is None and len(images) > 1:
                raise UserError(
                    f"line {number} of {path} names {len(images)} images; give one path per line, or a header with a "
                    "column file"
                )
            position = column if column is not None and column < len(fields) else (images or [0])[0]
            if found := _find(folder, fields[position]):
                yield found
            else:
                missing.append(f"line {number}: {fields[position] or text}")


def _fields(line: str) -> list[str]:
    delimiter = next((mark for mark in _DELIMITERS if mark in line), ",")
    return [field.strip().strip("'\"") for field in next(csv.reader([line], delimiter=delimiter))]


def _find(folder: str, name: str) -> str | None:
    """The path of a file that a list names, or None."""
    path = os.path.join(folder, existing(folder or ".", name))
    return path if os.path.isfile(path) else None
