"""The lines of text tables as lists of fields, whatever separates these."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

from densepath.core.columns import FILE_COLUMNS, SLIDE_COLUMNS, plain_head

# An outline in a column is longer than Python's default of 128 KiB.
csv.field_size_limit(2**24)
SEPARATOR = re.compile(r'"?sep=(.)"?[\r\n]*', re.IGNORECASE)  # a first line of Excel, which names the delimiter
_COMMENT = re.compile(r"#[^,;\t]")  # a column may be called "#"
_NAMES = {*FILE_COLUMNS, *SLIDE_COLUMNS}
_FILE = re.compile(
    r".*\.(?:png|jpe?g|tiff?|webp|bmp|dcm|dicom|svs|btf|ndpi|mrxs|scn|bif|vm[su]|svslide|czi|nii|gz|mh[ad]"
    r"|b2nd|h5|hdf5|pt|npy|mat|(?:geo)?json)",
    re.IGNORECASE,
)
_PATH = re.compile(r"(?=.*\d).*[/\\].*")  # with a number: "um/px" is a name
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
_LINE_END = re.compile(r"\r\n|\r|\n")


def delimiter_of(line: str) -> str:
    """What separates the fields of a table, by its first line: tabs, semicolons (as of Excel in Europe) or commas."""
    return max("\t;,", key=line.count) if any(mark in line for mark in "\t;") else ","


def header_in_comment(comment: str, row: str, delimiter: str = "") -> str:
    """The header in the comment before the first row of a table, as in ``#id,file,label``; empty if that has none.

    It has as many fields as the row, and names a column of files or slides. The row names none, and a field of it
    cannot be the name of a column: it is a file, a number below a name that is none, or a path below the name of files
    or slides.

    Args:
        comment: the line before the row.
        row: the first row, or the header if the comment is not one.
        delimiter: of the table; empty to see it in the comment.
    """
    if not comment.lstrip().startswith("#"):
        return ""
    head = comment.lstrip().lstrip("#").lstrip(" ")
    fields, others = (_fields(line, delimiter or delimiter_of(head)) for line in (head, row))
    heads, values = (set(map(plain_head, each)) for each in (fields, others))
    named = len(fields) == len(others) > 1 and _NAMES & heads and not _NAMES & values
    return head if named and any(map(_is_value, fields, others)) else ""


def _is_value(name: str, field: str) -> bool:
    """Whether a field cannot be the name of a column itself, if ``name`` is the name of its column."""
    if _FILE.fullmatch(field) or (_NUMBER.fullmatch(field) and not _NUMBER.fullmatch(name)):
        return True
    return plain_head(name) in _NAMES and bool(_PATH.fullmatch(field))


def _fields(line: str, delimiter: str) -> list[str]:
    """The fields of a line without quotes around them."""
    fields = next(csv.reader([line.strip("\r\n")], delimiter=delimiter, skipinitialspace=True), [])
    return [field.strip(" \"'") for field in fields]


class Lines:
    """The lines of a table as lists of fields, the header first; blank lines and comments before it are skipped, except
    for a comment that is the header, see :func:`header_in_comment`.

    Text may follow a closing quote in the line of the opening one, and blanks always. Otherwise a quote that is not
    closed raises ``csv.Error``: the lines after it would become one field. It is not found if a later quote that ends a
    field closes it.

    Args:
        lines: of the text. A first line ``sep=;``, as Excel writes and reads it, names the delimiter; otherwise the
            header shows it.
        before: the number of lines that were read before.
        delimiter: of a text without such a first line; empty to see it in the header.

    Attributes:
        line_num: the number of the line in the file that was read last.
    """

    def __init__(self, lines: Iterable[str], before: int = 0, delimiter: str = "") -> None:
        lines = iter(lines)
        first = skipped = ""
        for first in lines:
            if match := SEPARATOR.fullmatch(first):
                delimiter = match[1]
            elif first.strip() and not _COMMENT.match(first):
                break
            before, skipped, first = before + 1, first, ""
        if head := header_in_comment(skipped, first, delimiter):
            before, first, lines = before - 1, head, chain([first], lines)
        self.delimiter = delimiter or delimiter_of(first)
        self.line_num = before
        end = re.escape(self.delimiter) + r"\r\n"
        self._field = re.compile(rf' *"([^"]*+(?:""[^"]*+)*+)("?)([^{end}]*)(?:[{end}]|$)|[^{end}]*[{end}]?')
        self._taken: list[str] = []  # lines of the current row
        self._lines = self._noted(chain([first] if first else [], lines))
        self._reader = self._parsed(self._lines, strict=True)

    def __iter__(self) -> Iterator[list[str]]:
        return self

    def __next__(self) -> list[str]:
        self._taken.clear()
        try:
            return next(self._reader)
        except csv.Error:
            return self._lenient_row()

    def _lenient_row(self) -> list[str]:
        """The current row, read again with text after closing quotes."""
        start, too_long = self.line_num - len(self._taken) + 1, None
        try:
            row: list[str] = next(self._parsed(chain([*self._taken], self._lines), strict=False))
        except csv.Error as error:  # a field is longer than the limit, perhaps because its quote is not closed
            if len(self._taken) == 1:
                raise
            row, too_long = [], error
        text = "".join(self._taken)
        for match in self._field.finditer(text):
            inner, closing, rest = match.groups("")
            if match[1] is not None and (not closing or (_LINE_END.search(inner) and rest.strip())):
                line = start + len(_LINE_END.findall(text, 0, match.start(1)))
                raise csv.Error(f"line {line} has a quote that is not closed, or not doubled within a text")
        if too_long is not None:
            raise too_long
        return row

    def _parsed(self, lines: Iterable[str], strict: bool) -> Any:
        return csv.reader(lines, delimiter=self.delimiter, skipinitialspace=True, strict=strict)

    def _noted(self, lines: Iterable[str]) -> Iterator[str]:
        for line in lines:
            self._taken.append(line)
            self.line_num += 1
            yield line
