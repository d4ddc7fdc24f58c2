"""Tables in CSV files, those that densepath writes and reads again and others; names need not be valid Unicode."""

from __future__ import annotations

import codecs
import csv
import errno
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, TextIO

from densepath.core.errors import UserError, refuse
from densepath.core.files import atomic_write

# An outline in a column is longer than Python's default of 128 KiB.
csv.field_size_limit(2**24)
SEPARATOR = re.compile(r'"?sep=(.)"?[\r\n]*', re.IGNORECASE)  # a first line of Excel, which names the delimiter
_WORKBOOKS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")  # how files of .xlsx and .ods, and of .xls begin
_COMMENT = re.compile(r"#[^,;\t]")  # a column may be called "#"
_NO_TEXT = re.compile("[\ud800-\udfff]")  # bytes that are not text


def delimiter_of(line: str) -> str:
    """What separates the fields of a table, by its first line: tabs, semicolons (as of Excel in Europe) or commas."""
    return max("\t;,", key=line.count) if any(mark in line for mark in "\t;") else ","


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


class Lines:
    """The lines of a table as lists of fields, the header first; blank lines and comments before it are skipped.

    A quote that is not closed raises ``csv.Error``: the lines after it would become one field.

    Args:
        lines: of the text. A first line ``sep=;``, as Excel writes and reads it, names the delimiter; otherwise the
            header shows it.
        before: the number of lines that were read before.
        delimiter: of a text without such a first line; empty to see it in the header.
    """

    def __init__(self, lines: Iterable[str], before: int = 0, delimiter: str = "") -> None:
        lines = iter(lines)
        first = ""
        for first in lines:
            if match := SEPARATOR.fullmatch(first):
                delimiter = match[1]
            elif first.strip() and not _COMMENT.match(first):
                break
            before, first = before + 1, ""
        self.delimiter = delimiter or delimiter_of(first)
        self._before = before
        self._taken: list[str] = []  # lines of the current row, and "" for the end of the text
        self._reader = self._parsed(self._noted(chain([first] if first else [], lines)), strict=True)

    @property
    def line_num(self) -> int:
        """The number of the line in the file that was read last."""
        return self._before + self._reader.line_num

    def __iter__(self) -> Iterator[list[str]]:
        return self

    def __next__(self) -> list[str]:
        self._taken.clear()
        try:
            return next(self._reader)
        except csv.Error as error:
            if len(self._taken) > 1:  # only within quotes a row has several
                first = self.line_num - len([*filter(None, self._taken)]) + 1
                raise csv.Error(f"line {first} has a quote that is not closed, or not doubled within a text") from error
            return next(self._parsed(self._taken, strict=False))  # text after a closing quote

    def _parsed(self, lines: Iterable[str], strict: bool) -> Any:
        return csv.reader(lines, delimiter=self.delimiter, skipinitialspace=True, strict=strict)

    def _noted(self, lines: Iterable[str]) -> Iterator[str]:
        for line in lines:
            self._taken.append(line)
            yield line
        self._taken.append("")


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
                refuse_longer(fields, len(self.columns), f"line {self._lines.line_num} of {self._path}")
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


def refuse_longer(fields: Sequence[str], width: int, where: str) -> None:
    """Refuse a row with more fields than its header: a delimiter in a text that is not quoted moves all after it.

    Args:
        fields: of the row; those after the header's may be empty.
        width: the number of fields of the header.
        where: the line or the file, for the message.

    Raises:
        UserError: it has more.
    """
    if any(field.strip() for field in fields[width:]):
        raise UserError(f"{where} has more fields than its header; put texts with a delimiter into quotes")


def plain_head(head: str) -> str:
    """The name of a column as it is compared: ``Patient ID`` is ``patient_id``."""
    return head.strip().lower().replace(" ", "_")


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
        with open_text(path) as file:
            table = csv.DictReader(file, restval="", strict=True)
            rows, heads = list(table), table.fieldnames or ()
        if not {*columns} <= {*heads}:
            rows, heads = _saved_by_others(path)
        for number, row in enumerate(rows, 1):
            refuse_longer(row.pop(None, ()), 0, f"row {number} of {path}")
    except (OSError, UnicodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read ({error}); {remedy}") from error
    refuse([name for name in columns if name not in heads], f"{path} lacks columns", remedy)
    return rows


def _saved_by_others(path: Path) -> tuple[list[dict[str, str]], list[str]]:
    """The rows and the header of a table with any delimiter."""
    with open_text(path) as file:
        lines = Lines(file)
        heads = [head.strip() for head in next(lines, [])]
        rows = []
        for row in filter(any, lines):
            refuse_longer(row, len(heads), f"line {lines.line_num} of {path}")
            rows.append(dict(zip_longest(heads, row[: len(heads)], fillvalue="")))
    return rows, heads


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
