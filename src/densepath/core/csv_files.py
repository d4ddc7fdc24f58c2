"""Tables in CSV files, those that densepath writes and reads again and others; names need not be valid Unicode."""

from __future__ import annotations

import codecs
import csv
import errno
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

from densepath.core.errors import UserError
from densepath.core.files import atomic_write


def delimiter_of(line: str) -> str:
    """What separates the fields of a table, by its first line: tabs, semicolons (as of Excel in Europe) or commas."""
    return max("\t;,", key=line.count) if any(mark in line for mark in "\t;") else ","


def encoding_of(path: str | Path) -> str:
    """How the text of a user's file is encoded: UTF-8, or UTF-16 as in Excel's "Unicode text"."""
    if not os.path.isfile(path):  # a pipe can be read only once
        return "utf-8-sig"
    with open(path, "rb") as file:
        return "utf-16" if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"


@contextmanager
def open_table(path: str | Path, errors: str = "strict") -> Iterator[csv.DictReader[str]]:
    """The rows of a user's table by its columns: commas, semicolons or tabs; UTF-8 or UTF-16; blanks after commas.

    Args:
        path: the file, or a pipe.
        errors: what is done with bytes that are not text, as of :func:`open`.

    Raises:
        OSError, UnicodeError, csv.Error: it cannot be read.
    """
    with _open(path, errors) as (lines, delimiter):
        yield csv.DictReader(lines, delimiter=delimiter, skipinitialspace=True)


@contextmanager
def open_lines(path: str | Path) -> Iterator[tuple[Any, str]]:
    """The lines of such a table as lists of fields (a reader of :mod:`csv`), the header first, and its delimiter.

    Bytes that are not text become surrogates.

    Raises:
        OSError, UnicodeError, csv.Error: it cannot be read, or is a pipe: such tables are read more than once.
    """
    if not os.path.isfile(path) and not os.path.isdir(path) and os.path.exists(path):
        raise OSError(errno.ESPIPE, "it is a pipe or a device; give a file", str(path))
    with _open(path, "surrogateescape") as (lines, delimiter):
        yield csv.reader(lines, delimiter=delimiter), delimiter


@contextmanager
def _open(path: str | Path, errors: str) -> Iterator[tuple[Iterator[str], str]]:
    with open(path, newline="", encoding=encoding_of(path), errors=errors) as file:
        first = next(file, "")
        yield chain([first] if first else [], file), delimiter_of(first)


def read_rows(path: Path, remedy: str) -> list[dict[str, str]]:
    """The rows of a table by its columns.

    Args:
        path: the file.
        remedy: what the user should do if it is damaged.

    Raises:
        UserError: it cannot be read.
    """
    try:
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            return list(csv.DictReader(file))
    except (OSError, csv.Error) as error:
        raise UserError(f"{path} cannot be read ({error}); {remedy}") from error


def write_rows(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a table: a value that a row lacks is empty, and values of other columns are left out.

    Raises:
        UserError: the disk is full.
    """
    with atomic_write(path) as part, part.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.DictWriter(file, columns, restval="", extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
