"""Text lists of image files: plain lines, or a table with a column of paths."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

from densepath.core.columns import PATH_COLUMNS, plain_head
from densepath.core.csv_files import find_column, open_text, refuse_longer, refuse_other_encoding
from densepath.core.errors import UserError, first_few
from densepath.core.files import existing
from densepath.core.table_lines import SEPARATOR, Lines, delimiter_of, header_in_comment

_DELIMITERS = "\t;,"


def read_list(path: str, suffixes: Sequence[str]) -> Iterator[str]:
    """The files that a list names, in its order.

    A line is a path, absolute or relative to the list's folder; quotes around it are removed, and backslashes separate
    folders if there is no file with a backslash in its name. A list whose header has several columns, separated by
    tabs, semicolons or commas, is a table: it names the file in the column that the header calls ``file``, ``path``,
    ``image`` or the like, or else in its only column that ends like an image. So may lines of several columns without
    a header. Blank lines and lines that start with # are skipped.

    Args:
        path: the list.
        suffixes: the endings of images.

    Raises:
        UserError: the list cannot be read, names missing files, or several images in a line.
    """
    missing: list[str] = []
    folder = os.path.dirname(path)
    for number, names, _ in _rows(path, suffixes, ()):
        tried = []
        for name in names:
            tried.append(name)
            if found := _find(folder, name):
                yield found
                break
        else:
            missing.append(f"line {number}: {tried[:2][-1] or tried[0]}")
    if missing:
        raise UserError(
            f"the list {path} names files that do not exist ({first_few(missing, separator='; ')}); "
            "correct them (paths are relative to the list's folder)"
        )


def read_columns(path: str, suffixes: Sequence[str], *columns: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Each file of a list as it is written there, with the texts of some columns; nothing if the list is not a table.

    Args:
        path: the list.
        suffixes: the endings of images.
        columns: names of each column, the first that the table has counts; a column that it lacks is empty.

    Raises:
        UserError: the list cannot be read, or has such a column twice.
    """
    for _, names, texts in _rows(path, suffixes, columns):
        if texts:
            yield next(iter(names)), texts


def _rows(
    path: str, suffixes: Sequence[str], columns: Sequence[Sequence[str]]
) -> Iterator[tuple[int, Iterable[str], list[str]]]:
    """Of each line its number, what may be the file, the likeliest first, and in a table the texts of some columns."""
    try:
        with open_text(path) as file:
            yield from _lines(file, path, suffixes, columns)
    except (OSError, UnicodeError) as error:
        other = ("its encoding is neither UTF-8 nor UTF-16", "save it again")
        why, remedy = (error.strerror, "check the path") if isinstance(error, OSError) else other
        raise UserError(f"the list {path} cannot be read ({why}); {remedy}") from error
    except csv.Error as error:
        raise UserError(f"the list {path} cannot be read ({error}); give one path per line, or a table") from error


def _lines(
    file: Iterator[str], path: str, suffixes: Sequence[str], columns: Sequence[Sequence[str]]
) -> Iterator[tuple[int, Iterable[str], list[str]]]:
    numbered, skipped = enumerate(file, 1), ""
    for number, line in numbered:
        if not line.strip() or line.lstrip().startswith("#"):
            skipped = line
            continue
        lines = ((n, text) for n, text in numbered if text.strip() and not text.lstrip().startswith("#"))
        head = _fields(line.strip(), delimiter_of(line))
        split = [field for mark in _DELIMITERS for field in _fields(line.strip(), mark)]
        is_file = _find(os.path.dirname(path), line.strip()) is not None
        is_head = _is_header(split, suffixes) and not is_file
        named = not path.lower().endswith(".txt") or any(plain_head(field) in PATH_COLUMNS for field in head)
        if (commented := header_in_comment(skipped, line)) and not is_file:
            yield from _table(Lines(chain([commented, line], file), number - 2), path, suffixes, columns)
            return
        if SEPARATOR.fullmatch(line) or (is_head and len(head) > 1 and named):
            yield from _table(Lines(chain([line], file), number - 1), path, suffixes, columns)
            return
        rest = lines if is_head else chain([(number, line)], lines)
        yield from ((n, _candidates(line.strip(), suffixes, f"line {n} of {path}"), []) for n, line in rest)
        return


def _table(
    lines: Lines, path: str, suffixes: Sequence[str], columns: Sequence[Sequence[str]]
) -> Iterator[tuple[int, Iterable[str], list[str]]]:
    """The rows of a table, whose header may be missing."""
    first = [_bare(field) for field in next(lines, [])]
    heads = [plain_head(field) for field in first] if _is_header(first, suffixes) else []
    file = find_column(heads, PATH_COLUMNS, path)
    places = [find_column(heads, names, path) for names in columns]
    for fields in chain([] if heads else [first], ([_bare(field) for field in row] for row in lines)):
        if any(fields) and not fields[0].startswith("#"):
            refuse_longer(fields, len(heads) or len(fields), path, lines.line_num)
            at = f"line {lines.line_num} of {path}"
            name = fields[file] if file is not None and file < len(fields) else _only_image(fields, suffixes, at)
            texts = [fields[place] if place is not None and place < len(fields) else "" for place in places]
            refuse_other_encoding(texts, at)
            yield lines.line_num, [name or ",".join(fields)], texts


def _is_header(fields: Sequence[str], suffixes: Sequence[str]) -> bool:
    """Whether a first line names columns: none of its fields is a path or ends like an image."""
    return not any("/" in field or field.lower().endswith(tuple(suffixes)) for field in fields)


def _candidates(text: str, suffixes: Sequence[str], where: str) -> Iterator[str]:
    """What may be the file in a line without a header: all of it, or a field."""
    yield text
    for delimiter in [mark for mark in _DELIMITERS if mark in text] or [","]:
        yield _only_image(_fields(text, delimiter), suffixes, where)


def _only_image(fields: Sequence[str], suffixes: Sequence[str], where: str) -> str:
    """The only field that ends like an image, or else the first field.

    Raises:
        UserError: there are several.
    """
    images = [name for name in fields if name.lower().endswith(tuple(suffixes))]
    if len(images) > 1:
        raise UserError(f"{where} names {len(images)} images; give one path per line, or a header with a column file")
    return (images or fields)[0]


def _fields(text: str, delimiter: str) -> list[str]:
    return [_bare(field) for field in next(csv.reader([text], delimiter=delimiter, skipinitialspace=True))]


def _bare(field: str) -> str:
    return field.strip().strip("'\"")


def _find(folder: str, name: str) -> str | None:
    """The path of a file that a list names, or None."""
    path = os.path.join(folder, existing(folder or ".", name))
    return path if os.path.isfile(path) else None
