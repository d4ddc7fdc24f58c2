"""Tables of labels: lines of a file and what is known of it, read into checksums of paths."""

from __future__ import annotations

import csv
import os
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

from densepath.core.columns import LABELLED_COLUMNS, PATIENT_COLUMNS, SPLIT, plain_head
from densepath.core.csv_files import find_column, open_lines, refuse_longer, refuse_other_encoding
from densepath.core.errors import UserError
from densepath.core.spelling import composed
from densepath.core.table_lines import Lines
from densepath.sources.listing import SUFFIXES

LABEL = "label"
_LABELS = (LABEL, "labels", "class")  # columns that are labels, whatever the others are called
_NO_LABELS = {*LABELLED_COLUMNS, *PATIENT_COLUMNS, SPLIT} - {"case", "subject"}  # a case may be one of a disease


@dataclass(frozen=True, eq=False)
class Table:
    """A table's lines in the order of their keys.

    Args:
        names: the labels: texts of the columns.
        keys: (L,) int64, checksums of the files' paths.
        labels: (L,) int32, indices into ``names``.
        lines: (L,) int64, line numbers in the file.
        depths: the numbers of parts of the paths, the largest first.
        delimiter: what separates the fields.
        backslashes: whether a path has one.
    """

    names: list[tuple[str, ...]]
    keys: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int32]
    lines: npt.NDArray[np.int64]
    depths: list[int]
    delimiter: str
    backslashes: bool


def known_columns(path: str, columns: Sequence[str]) -> list[str]:
    """Columns as a table is read by; "label" may stand for another that names labels.

    Raises:
        UserError: the table has no such column, or its header names no column of files.
    """
    heads = _first_line(path)
    known = heads if _is_header(heads) else []
    named = {*_heads(list(columns)), *_LABELS} & {*heads}
    if named and not known and not heads[0].endswith(SUFFIXES):
        raise UserError(
            f"{path} has no column of files; its header names {', '.join(heads)}: call that of the files "
            f"{LABELLED_COLUMNS[0]} (or {', '.join(LABELLED_COLUMNS[1:4])})"
        )
    find_column(known, LABELLED_COLUMNS, path)
    for column in columns:
        find_column(known, [plain_head(column)], path)
        if column == LABEL and (not known or _place(known, LABEL) is not None):
            continue
        if plain_head(column) not in known:
            refuse_other_encoding(known, f"the header of {path}")
            raise UserError(
                f"{path} has no column {column}; its header names {', '.join(known)}: name one of these"
                if known
                else f"{path} has no header; give one that names the columns {LABELLED_COLUMNS[0]} and {column}"
            )
    return _heads(list(columns))


def table_columns(path: str) -> list[str]:
    """The columns of a table of labels, as ``plain_head`` spells them; none if its first line is not a header.

    Raises:
        UserError: it cannot be read.
    """
    heads = _first_line(path)
    return heads if _is_header(heads) else []


def _first_line(path: str) -> list[str]:
    with open_label_table(path) as reader:
        return _heads(next(reader, []))


@contextmanager
def open_label_table(path: str) -> Iterator[Lines]:
    """The lines of a table of labels.

    Raises:
        UserError: it cannot be read, at any of its lines.
    """
    try:
        with open_lines(path) as reader:
            yield reader
    except (OSError, ValueError) as error:  # the latter for a path with a null byte
        why, remedy = (error.strerror, "check the path") if isinstance(error, OSError) else (error, "correct it")
        raise UserError(f"the table of labels {path} cannot be read ({why}); {remedy}") from error
    except csv.Error as error:
        raise UserError(f"{path} is not a table of labels ({error}); give lines of file,label") from error


def _is_header(heads: list[str]) -> bool:
    return any(name in heads for name in LABELLED_COLUMNS)


def read_table(path: str, columns: Sequence[str], empty: bool = False, windows: bool = False) -> Table:
    """Read a table with some columns, as ``known_columns`` spells them.

    Args:
        path: the file.
        columns: to be read.
        empty: whether texts may be empty.
        windows: whether backslashes separate folders.

    Raises:
        UserError: it cannot be read, is not such a table, or contradicts itself.
    """
    numbers: dict[tuple[str, ...], int] = {}
    keys, labels, lines = array("q"), array("i"), array("q")
    depths: set[int] = set()
    backslashes = False
    with open_label_table(path) as reader:
        delimiter = reader.delimiter
        for line, name, label in _rows(reader, path, columns, empty):
            backslashes = backslashes or "\\" in name
            parts = parts_of(os.path.normpath(name.replace("\\", "/") if windows else name))
            depths.add(len(parts))
            keys.append(key_of(parts))
            labels.append(numbers.setdefault(label, len(numbers)))
            lines.append(line)
    if not keys:
        raise UserError(f"the table of labels {path} is empty; give lines of file,label")
    order = np.frombuffer(keys, np.int64).argsort(kind="stable")
    key, label_of, line_of = (np.frombuffer(column, column.typecode)[order] for column in (keys, labels, lines))
    again = key[1:] == key[:-1]
    contrary = again & (label_of[1:] != label_of[:-1])
    if contrary.any():
        one, other = line_of[int(contrary.argmax()) :][:2]
        raise UserError(f"lines {one} and {other} of {path} give one file two {columns[0]}s; keep one of them")
    kept = np.append(True, ~again)
    found = key[kept], label_of[kept], line_of[kept], sorted(depths, reverse=True)
    return Table(list(numbers), *found, delimiter, backslashes)


def _rows(reader: Lines, path: str, columns: Sequence[str], empty: bool) -> Iterator[tuple[int, str, tuple[str, ...]]]:
    """The number of each line, and the file and the texts of columns in it; with ``empty``, they may be empty."""
    places, width, headed = [0, 1], 2, False
    for number, row in enumerate(reader):
        heads = _heads(row)
        if number == 0 and (found := _places(heads, columns)):
            places, width, headed = found, len(row), True
        elif any(heads):
            if headed:
                refuse_longer(row, width, path, reader.line_num)
            fits = len(row) >= width and not any(heads[width:])
            name, *texts = (row[place].strip() if fits else "" for place in places)
            if name and not empty and "" in texts:
                unknown = columns[texts.index("")]
                raise UserError(f"line {reader.line_num} of {path} has no {unknown}; fill it in, or take the image out")
            if not name:
                raise UserError(
                    f"line {reader.line_num} of {path} is not a file and its {columns[0]}; give lines of "
                    f"file,{columns[0]}, or a header that names these columns"
                )
            refuse_other_encoding(texts, f"line {reader.line_num} of {path}")
            yield reader.line_num, name, tuple(texts)


def _heads(row: list[str]) -> list[str]:
    return [plain_head(field) for field in row]


def _places(heads: list[str], columns: Sequence[str]) -> list[int] | None:
    """The places of the file and of other columns in a header; None if it is not a header with these."""
    file = next((heads.index(name) for name in LABELLED_COLUMNS if name in heads), None)
    found = [_place(heads, column) for column in columns]
    places = [place for place in found if place is not None]
    return [file, *places] if file is not None and len(places) == len(found) else None


def _place(heads: list[str], column: str) -> int | None:
    """The place of a column in a header; None if there is none, or several."""
    named = [place for place, head in enumerate(heads) if head == column]
    if column == LABEL and not named:
        named = [place for place, head in enumerate(heads) if head == "class"]
        named = named or [place for place, head in enumerate(heads) if head.startswith(LABEL)]
        if not named and len(heads) == 2:
            named = [place for place, head in enumerate(heads) if head not in _NO_LABELS]
    return named[0] if len(named) == 1 else None


def parts_of(path: str) -> list[bytes]:
    """The parts of a path, in one Unicode normalization: macOS writes another one than Linux."""
    return os.fsencode(composed(path)).split(b"/")


def key_of(parts: list[bytes]) -> int:
    """A checksum of a path, 8 bytes: among a million paths, the probability of a collision is 3e-8."""
    return int.from_bytes(blake2b(b"/".join(parts), digest_size=8).digest(), "little", signed=True)
