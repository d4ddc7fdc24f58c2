"""Tables in CSV files, those that densepath writes and reads again and others; names need not be valid Unicode."""

from __future__ import annotations

import codecs
import csv
import errno
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import zip_longest
from pathlib import Path
from typing import Any, TextIO

from densepath.core.columns import plain_head
from densepath.core.errors import UserError, refuse
from densepath.core.files import atomic_write
from densepath.core.table_lines import Lines

_WORKBOOKS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")  # how files of .xlsx and .ods, and of .xls begin
_NO_TEXT = re.compile("[\ud800-\udfff]")  # bytes that are not text


def encoding_of(path: str | Path) -> str:
    """How the text of a user's file is encoded: UTF-8, or UTF-16 as in Excel's "Unicode text".

    Raises:
        OSError: it cannot be read.
        UserError: it is a workbook.
    """
    if not os.path.isfile(path):  # a pipe can be read only once
        return "utf-8-sig"
    with open(path, "rb") as file:
        start = file.read(4)
    if start in _WORKBOOKS:
        raise UserError(f"{path} is a workbook of Excel or another program, not text; save it as CSV")
    return "utf-16" if start[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"


class Table:
    """A table by its columns.

    Args:
        path: the file, for messages.
        lines: its lines.
    """

    def __init__(self, path: str | Path, lines: Lines) -> None:
        self.columns = [plain_head(head) for head in next(lines, [])]
        self._path, self._lines = path, lines

    def column(self, names: Iterable[str]) -> str | None:
        """The first of some columns that the table has. Raises UserError if it has it twice."""
        place = find_column(self.columns, names, self._path)
        return None if place is None else self.columns[place]

    def rows(self) -> Iterator[tuple[int, dict[str, str]]]:
        """Line number and fields of each row that is not empty; fields that it lacks are empty.

        Raises:
            UserError: a row has more fields than the header.
        """
        for fields in self._lines:
            if any(field.strip() for field in fields):
                refuse_longer(fields, len(self.columns), self._path, self._lines.line_num)
                found = zip_longest(self.columns, map(str.strip, fields[: len(self.columns)]), fillvalue="")
                yield self._lines.line_num, dict(found)


@contextmanager
def open_table(path: str | Path, errors: str = "strict") -> Iterator[Table]:
    """A user's table: commas, semicolons or tabs; UTF-8 or UTF-16; blanks after commas.

    Args:
        path: the file, or a pipe.
        errors: what is done with bytes that are not text, as of :func:`open`.

    Raises:
        OSError, UnicodeError, csv.Error: it cannot be read.
    """
    with open_text(path, errors) as file:
        yield Table(path, Lines(file))


@contextmanager
def open_lines(path: str | Path) -> Iterator[Lines]:
    """The lines of such a table. Bytes that are not text become surrogates.

    Raises:
        OSError, UnicodeError, csv.Error: it cannot be read, or is a pipe: such tables are read more than once.
    """
    if not os.path.isfile(path) and not os.path.isdir(path) and os.path.exists(path):
        raise OSError(errno.ESPIPE, "it is a pipe or a device; give a file", str(path))
    with open_text(path) as file:
        yield Lines(file)


def open_text(path: str | Path, errors: str = "surrogateescape") -> TextIO:
    """A user's text file, whose ends of lines are as they are."""
    return open(path, newline="", encoding=encoding_of(path), errors=errors)


def refuse_other_encoding(texts: Iterable[str], where: str) -> None:
    """Refuse texts of a table that are names, but not valid Unicode; paths may be any bytes.

    Args:
        texts: names of classes, columns, patients or slides.
        where: the line or the file, for the message.

    Raises:
        UserError: the table has another encoding.
    """
    if wrong := next(filter(_NO_TEXT.search, texts), None):
        raise UserError(f'{where} is not UTF-8 ({wrong}); save the table as UTF-8 (in Excel "CSV UTF-8")')


def refuse_longer(fields: Sequence[str], width: int, path: str | Path, line: int) -> None:
    """Refuse a row with more fields than its header: a delimiter in a text that is not quoted moves all after it.

    Args:
        fields: of the row; those after the header's may be empty.
        width: the number of fields of the header.
        path, line: the file and the number of the line, for the message.

    Raises:
        UserError: it has more.
    """
    if len(fields) > width and any(field.strip() for field in fields[width:]):
        raise UserError(
            f"line {line} of {path} has {len(fields)} fields, its header {width}; quote fields that contain the "
            "delimiter, double the quotes within them, or name all columns"
        )


def find_column(heads: Sequence[str], names: Iterable[str], path: str | Path) -> int | None:
    """The place of the first of some columns that a header names, as ``plain_head`` spells them; None without one.

    Raises:
        UserError: the header names it twice.
    """
    name = next((name for name in names if name in heads), None)
    if name is None:
        return None
    refuse([name] * (heads.count(name) > 1), f"{path} has two columns", "rename one")
    return heads.index(name)


def read_rows(path: Path, remedy: str, columns: Sequence[str] = ()) -> list[dict[str, str]]:
    """The rows of a table by its columns; one that a spreadsheet has saved may have other delimiters or UTF-16.

    Args:
        path: the file.
        remedy: what the user should do if it is damaged.
        columns: those that it must have.

    Raises:
        UserError: it cannot be read, lacks a column, or has a row with more fields than its header.
    """
    try:
        rows, heads = _read(path, columns)
    except (OSError, UnicodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read ({error}); {remedy}") from error
    refuse([name for name in columns if name not in heads], f"{path} lacks columns", remedy)
    return rows


def _read(path: Path, columns: Sequence[str]) -> tuple[list[dict[str, str]], list[str]]:
    """The rows and the header of a table, as densepath writes them, or else with any delimiter."""
    delimiter = ""
    with suppress(csv.Error, UserError), open_text(path) as file:
        table = csv.reader(file, strict=True)
        heads = next(table, [])
        if {*columns} <= {*heads} if columns else len(heads) > 1:
            delimiter = ","
            return _by_columns(heads, filter(None, table), path, lambda: table.line_num), heads
    with open_text(path) as file:
        lines = Lines(file, delimiter=delimiter)
        heads = [head.strip() for head in next(lines, [])]
        return _by_columns(heads, filter(any, lines), path, lambda: lines.line_num), heads


def _by_columns(
    heads: Sequence[str], rows: Iterable[Sequence[str]], path: Path, line: Callable[[], int]
) -> list[dict[str, str]]:
    found = []
    for row in rows:
        refuse_longer(row, len(heads), path, line())
        found.append(dict(zip_longest(heads, row[: len(heads)], fillvalue="")))
    return found


class LineFeeds:
    """A file for a writer of ``csv`` with its own ends of lines, which become line feeds.

    Given these as ``lineterminator``, Python 3.11 would not quote a field with a carriage return, and readers would see
    two rows.
    """

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, line: str) -> int:
        """Write a line that ends with ``\\r\\n``."""
        return self._file.write(f"{line[:-2]}\n")


@contextmanager
def table_writer(path: Path) -> Iterator[Any]:
    """A writer of ``csv`` for the rows of a table, which appears as a whole.

    Raises:
        UserError: the disk is full.
    """
    with atomic_write(path) as part, part.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        yield csv.writer(LineFeeds(file))


def write_rows(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a table: a value that a row lacks is empty, and values of other columns are left out.

    Raises:
        UserError: the disk is full.
    """
    with table_writer(path) as writer:
        writer.writerow(columns)
        writer.writerows([row.get(column, "") for column in columns] for row in rows)
