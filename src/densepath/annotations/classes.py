"""The class of each image of a source: by its folder, or by a table of labels."""

from __future__ import annotations

import csv
import os
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from densepath.core.csv_files import delimiter_of, encoding_of
from densepath.core.errors import UserError, first_few
from densepath.core.spelling import composed
from densepath.sources.pixel_source import AllNames, Named

FOLDERS = "folders"
_LABEL = "label"
# Columns of files, the first that exists
_FILE = ("file", "file_name", "filename", "path", "image", "name", "image_name", "image_index")
_SHOWN = 12  # classes in a line


@dataclass(frozen=True, eq=False)
class Classes:
    """The classes of the images of a source.

    Args:
        names: names of the classes that have an image, sorted by their characters.
        labels: (N,) int32, for each image the index of its class in ``names``.
    """

    names: tuple[str, ...]
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def gather(self, index: Tensor, pin: bool = False) -> Tensor:
        """(B,) int32: the classes of the images at the positions ``index`` (B,)."""
        labels = self.labels[index]
        return labels.pin_memory() if pin else labels

    def describe(self) -> str:
        """The classes and their numbers of images, in one line."""
        counts = torch.bincount(self.labels, minlength=len(self.names)).tolist()
        shown = [f"{name} ({count})" for name, count in zip(self.names, counts, strict=True)]
        return f"{len(shown)} classes: {first_few(shown, _SHOWN)}"


def read_classes(images: Named, labels: str, root: str | Path | None = None, column: str | None = None) -> Classes:
    """Look up the class of each image.

    A table is a CSV or TSV file with two columns, the file and its label; with a header that names them ``file`` and
    ``label`` it may have more (``file_name``, ``path`` and ``image`` name files, too, and ``class`` or the only column
    that begins with ``label`` names labels). A file is given by its path relative to the folder of the images, by its
    absolute path (not in a packed store) or the last parts of that, or by its name if no other image has that name.
    Lines for other files are ignored. Only checksums of the table are kept, so that millions of lines take little
    memory.

    Args:
        images: the source.
        labels: "folders", or the path of a table. With "folders" the class of an image is its topmost folder below
            ``root``, as in torchvision's ImageFolder.
        root: the folder of the images; by default the one that contains all of them.
        column: the column of the table with the labels; by default ``label``.

    Raises:
        UserError: there are fewer than two classes; the table is missing, cannot be read, is not a table of labels or
            contradicts itself; or it has no label for an image.
    """
    if labels == FOLDERS:
        names, found = _by_folder(images, root)
    else:
        names, found = _by_table(images, labels, _LABEL if column is None else _known_columns(labels, [column])[0])
    used, inverse = np.unique(found, return_inverse=True)
    present = [names[number] for number in used]
    if len(present) < 2:
        name = os.path.basename(os.path.dirname(os.path.abspath(images.names(0)))) if present == ["."] else present[0]
        raise UserError(
            f"all images are of one class, {name}; give the folder that contains a folder for each class, or a table "
            "of labels with --labels"
        )
    order = sorted(range(len(present)), key=present.__getitem__)
    rank = np.empty(len(order), np.int32)
    rank[order] = np.arange(len(order))
    return Classes(tuple(present[number] for number in order), torch.from_numpy(rank[inverse]))


def _by_folder(images: Named, root: str | Path | None) -> tuple[list[str], npt.NDArray[np.int32]]:
    """The topmost folders of the images, and (N,) the index of each image's folder."""
    folders = {os.path.dirname(name) for name in AllNames(images)}
    # A list may have absolute and relative paths.
    base = os.path.commonpath([os.path.abspath(folder) for folder in folders]) if root is None else str(root)
    top = {folder: os.path.relpath(folder or ".", base or ".").split(os.sep)[0] for folder in folders}
    numbers: dict[str, int] = {}
    found = (numbers.setdefault(top[os.path.dirname(name)], len(numbers)) for name in AllNames(images))
    index = np.fromiter(found, np.int32, len(images))
    return list(numbers), index


def read_column(images: Named, path: str, column: str) -> list[str]:
    """What a column of a table says of each image, e.g. its patient; the table is as for :func:`read_classes`.

    Raises:
        UserError: as there, or the column is missing.
    """
    (name,) = _known_columns(path, [column])
    values, index = _by_table(images, path, name)
    return [values[number] for number in index]


@dataclass(frozen=True, eq=False)
class Matched:
    """What a table says of images.

    Args:
        values: (N,) the texts of the columns for each image; None for an image that the table lacks.
        lines: the numbers of the lines of other files.
    """

    values: list[tuple[str, ...] | None]
    lines: list[int]


def match_columns(images: Named, path: str, columns: Sequence[str]) -> Matched:
    """What several columns of a table say of each image; texts may be empty, and images and lines without a partner.

    The table is as for :func:`read_classes`; the column "label" is also found as there.

    Raises:
        UserError: as there, or a column is missing.
    """
    table = _read_table(path, _known_columns(path, columns), empty=True)
    row = _rows_of(images, path, table)
    unused = np.setdiff1d(np.arange(len(table.keys)), row)
    values = [None if number < 0 else table.names[table.labels[number]] for number in row]
    return Matched(values, sorted(table.lines[unused].tolist()))


def _known_columns(path: str, columns: Sequence[str]) -> list[str]:
    """Columns as ``_heads`` spells them; "label" may stand for another that names labels."""
    known = table_columns(path)
    for column in columns:
        if column == _LABEL and (not known or _place(known, _LABEL) is not None):
            continue
        if _heads([column])[0] not in known:
            raise UserError(
                f"{path} has no column {column}; its header names {', '.join(known) or 'none'}: name one of these"
            )
    return _heads(list(columns))


def table_columns(path: str) -> list[str]:
    """The columns of a table of labels, as ``_heads`` spells them; none if its first line is not a header.

    Raises:
        UserError: it cannot be read.
    """
    try:
        with open(path, encoding=encoding_of(path), errors="surrogateescape", newline="") as file:
            heads = _heads(next(csv.reader(file, delimiter=_delimiter(file)), []))
    except (OSError, ValueError, csv.Error) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"the table of labels {path} cannot be read ({why}); check the path") from error
    return heads if _places(heads, [_LABEL]) or any(name in heads for name in _FILE) else []


def _by_table(images: Named, path: str, column: str = _LABEL) -> tuple[list[str], npt.NDArray[np.int32]]:
    """The labels of a table, and (N,) the index of each image's label."""
    table = _read_table(path, [column])
    row = _rows_of(images, path, table)
    if (row < 0).any():
        first = images.names(int((row < 0).argmax()))
        raise UserError(
            f"{(row < 0).sum()} of {len(row)} images have no {column} in {path}, the first is {first}; add them"
        )
    return [name for (name,) in table.names], table.labels[row]


def _rows_of(images: Named, path: str, table: _Table) -> npt.NDArray[np.int64]:
    """(N,) the row of each image in a table; -1 without one."""
    row = np.full(len(images), -1, np.int64)
    for depth in table.depths:
        paths = (os.path.abspath(images.names(position)) for position in range(len(images)))
        tails = (_parts(path)[-depth:] for path in paths)
        keys = np.fromiter((_key(tail) if len(tail) == depth else 0 for tail in tails), np.int64, len(images))
        candidate = np.searchsorted(table.keys, keys).clip(max=len(table.keys) - 1)
        row = np.where((row < 0) & (table.keys[candidate] == keys), candidate, row)
    times = np.bincount(row[row >= 0], minlength=1)
    if times.max() > 1:
        one, other = (images.names(int(position)) for position in np.flatnonzero(row == times.argmax())[:2])
        line = table.lines[times.argmax()]
        raise UserError(f"line {line} of {path} may mean {one} or {other}; give paths relative to the images' folder")
    return row


@dataclass(frozen=True, eq=False)
class _Table:
    """A table's lines in the order of their keys.

    Args:
        names: the labels: texts of the columns.
        keys: (L,) int64, checksums of the files' paths.
        labels: (L,) int32, indices into ``names``.
        lines: (L,) int64, line numbers in the file.
        depths: the numbers of parts of the paths, the largest first.
    """

    names: list[tuple[str, ...]]
    keys: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int32]
    lines: npt.NDArray[np.int64]
    depths: list[int]


def _read_table(path: str, columns: Sequence[str], empty: bool = False) -> _Table:
    numbers: dict[tuple[str, ...], int] = {}
    keys, labels, lines = array("q"), array("i"), array("q")
    depths: set[int] = set()
    try:
        with open(path, encoding=encoding_of(path), errors="surrogateescape", newline="") as file:
            for line, name, label in _rows(file, path, columns, empty):
                parts = _parts(os.path.normpath(name))
                depths.add(len(parts))
                keys.append(_key(parts))
                labels.append(numbers.setdefault(label, len(numbers)))
                lines.append(line)
    except (OSError, ValueError) as error:  # the latter for a path with a null byte
        why = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"the table of labels {path} cannot be read ({why}); check the path") from error
    except csv.Error as error:
        raise UserError(f"{path} is not a table of labels ({error}); give lines of file,label") from error
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
    return _Table(list(numbers), key[kept], label_of[kept], line_of[kept], sorted(depths, reverse=True))


def _rows(file: Any, path: str, columns: Sequence[str], empty: bool) -> Iterator[tuple[int, str, tuple[str, ...]]]:
    """The number of each line, and the file and the texts of columns in it; with ``empty``, they may be empty."""
    reader = csv.reader(file, delimiter=_delimiter(file))
    places, width = [0, 1], 2
    for row in reader:
        heads = _heads(row)
        if reader.line_num == 1 and (found := _places(heads, columns)):
            places, width = found, len(row)
        elif any(heads):
            name, *texts = (row[place].strip() if len(row) == width else "" for place in places)
            if not name or not (empty or all(texts)):
                raise UserError(
                    f"line {reader.line_num} of {path} is not a file and its {columns[0]}; give lines of "
                    f"file,{columns[0]}, or a header that names these columns"
                )
            yield reader.line_num, name, tuple(texts)


def _delimiter(file: Any) -> str:
    found = delimiter_of(file.readline())
    file.seek(0)
    return found


def _heads(row: list[str]) -> list[str]:
    """Names of columns as they are compared: ``Patient ID`` is ``patient_id``."""
    return [field.strip().lower().replace(" ", "_") for field in row]


def _places(heads: list[str], columns: Sequence[str]) -> list[int] | None:
    """The places of the file and of other columns in a header; None if it is not a header with these."""
    file = next((heads.index(name) for name in _FILE if name in heads), None)
    found = [_place(heads, column) for column in columns]
    places = [place for place in found if place is not None]
    return [file, *places] if file is not None and len(places) == len(found) else None


def _place(heads: list[str], column: str) -> int | None:
    """The place of a column in a header; None if there is none, or several."""
    named = [place for place, head in enumerate(heads) if head == column]
    if column == _LABEL and not named:
        named = [place for place, head in enumerate(heads) if head == "class"]
        named = named or [place for place, head in enumerate(heads) if head.startswith(_LABEL)]
    return named[0] if len(named) == 1 else None


def _parts(path: str) -> list[bytes]:
    """The parts of a path, in one Unicode normalization: macOS writes another one than Linux."""
    return os.fsencode(composed(path)).split(b"/")


def _key(parts: list[bytes]) -> int:
    """A checksum of a path, 8 bytes: among a million paths, the probability of a collision is 3e-8."""
    return int.from_bytes(blake2b(b"/".join(parts), digest_size=8).digest(), "little", signed=True)
