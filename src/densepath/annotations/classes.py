"""The class of each image of a source: by its folder, or by a table of labels."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from densepath.annotations.label_table import LABEL, Table, key_of, known_columns, parts_of, read_table
from densepath.core.errors import UserError, counted, first_few, refuse
from densepath.core.spelling import is_missing, several_spellings
from densepath.core.streams import say
from densepath.sources.names import AllNames, Named
from densepath.sources.suffixes import stems_of

FOLDERS = "folders"
_TRIED = 100  # images without a row whose names are tried without zeros
_ZEROS = re.compile(r"^0+(?=\d)")
_DECIMAL = re.compile(r"(-?[01])([.,])0")
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
        return f"{counted(len(shown), 'class', 'classes')}: {first_few(shown, _SHOWN)}"


def read_classes(images: Named, labels: str, root: str | Path | None = None, column: str | None = None) -> Classes:
    """Look up the class of each image.

    A table is a CSV or TSV file with two columns, the file and its label; with a header that names them ``file`` and
    ``label`` it may have more (``file_name``, ``path`` and ``image`` name files, too, and ``class`` or the only column
    that begins with ``label`` names labels). A file is given by its path relative to the folder of the images, by its
    absolute path (not in a packed store) or the last parts of that, or by its name if no other image has that name;
    backslashes separate folders if more images are found so.
    Lines for other files are ignored. Only checksums of the table are kept, so that millions of lines take little
    memory.

    Args:
        images: the source.
        labels: "folders", or the path of a table. With "folders" the class of an image is its topmost folder below
            ``root``, as in torchvision's ImageFolder.
        root: the folder of the images; by default the one that contains all of them.
        column: the column of the table with the labels; by default ``label``.

    Raises:
        UserError: there are fewer than two classes, or two that only their spelling tells apart; the table is
            missing, cannot be read, is not a table of labels or contradicts itself; or it has no label for an image.
    """
    if labels == FOLDERS:
        names, found = _by_folder(images, root)
    else:
        names, found = _by_table(images, labels, _label_column(labels, column))
    used, inverse = np.unique(found, return_inverse=True)
    present = [names[number] for number in used]
    if len(present) < 2:
        name = os.path.basename(os.path.dirname(os.path.abspath(images.names(0)))) if present == ["."] else present[0]
        raise UserError(
            f"all images are of one class, {name}; give the folder that contains a folder for each class, or a table "
            "of labels with --labels"
        )
    source = "the folders" if labels == FOLDERS else labels
    if labels != FOLDERS:
        empty = [name for name in present if is_missing(name)]
        refuse(empty, f"labels in {source} that mean an empty field", "fill it in, or take these images out")
    alike = several_spellings(present)
    refuse(alike, f"classes in {source} that differ in capitals, spaces or zeros", "spell each one way")
    order = sorted(range(len(present)), key=present.__getitem__)
    rank = np.empty(len(order), np.int32)
    rank[order] = np.arange(len(order))
    return Classes(tuple(present[number] for number in order), torch.from_numpy(rank[inverse]))


def warn_of_uncertain(names: Sequence[str]) -> None:
    """Say that -1 beside 0 (and 1), which labels of radiographs have where a report is uncertain, is a class."""
    if {"-1", "0"} <= {without_decimal(name) for name in names} <= {"-1", "0", "1"}:
        say(
            f"densepath: warning: the classes are {', '.join(names)}; if -1 means that a label is uncertain, take "
            "these images out, or name the column with --targets of densepath classify, which reads it so"
        )


def without_decimal(text: str, comma: bool = True) -> str:
    """0, 1 and -1 without the decimal of 1.0, and with ``comma`` that of 1,0; other texts as they are."""
    found = _DECIMAL.fullmatch(text)
    return found[1] if found and (comma or found[2] == ".") else text


def _label_column(path: str, column: str | None) -> str:
    """The column of the labels, which is looked for unless the table is a pipe, which can be read only once."""
    return LABEL if column is None and not os.path.isfile(path) else known_columns(path, [column or LABEL])[0]


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
    (name,) = known_columns(path, [column])
    values, index = _by_table(images, path, name)
    return [values[number] for number in index]


@dataclass(frozen=True, eq=False)
class Matched:
    """What a table says of images.

    Args:
        values: (N,) the texts of the columns for each image; None for an image that the table lacks.
        lines: the numbers of the lines of other files.
        hint: why images may have no line; "" if unknown.
        delimiter: what separates the fields.
    """

    values: list[tuple[str, ...] | None]
    lines: list[int]
    hint: str
    delimiter: str


def match_columns(images: Named, path: str, columns: Sequence[str]) -> Matched:
    """What several columns of a table say of each image; texts may be empty, and images and lines without a partner.

    The table is as for :func:`read_classes`; the column "label" is also found as there.

    Raises:
        UserError: as there, or a column is missing.
    """
    table, row = _matched(images, path, known_columns(path, columns), empty=True)
    unused = np.setdiff1d(np.arange(len(table.keys)), row)
    values = [None if number < 0 else table.names[table.labels[number]] for number in row]
    return Matched(values, sorted(table.lines[unused].tolist()), _hint(images, table, row), table.delimiter)


def _by_table(images: Named, path: str, column: str = LABEL) -> tuple[list[str], npt.NDArray[np.int32]]:
    """The labels of a table, and (N,) the index of each image's label."""
    table, row = _matched(images, path, [column])
    if (row < 0).any():
        first = images.names(int((row < 0).argmax()))
        raise UserError(
            f"{(row < 0).sum()} of {len(row)} images have no {column} in {path}{_hint(images, table, row)}, the first "
            f"is {first}; add them"
        )
    return [name for (name,) in table.names], table.labels[row]


def _matched(
    images: Named, path: str, columns: Sequence[str], empty: bool = False
) -> tuple[Table, npt.NDArray[np.int64]]:
    """A table, and the row of each image in it. Backslashes separate folders if more images have a row then."""
    table = read_table(path, columns, empty)
    row = _rows_of(images, path, table)
    if table.backslashes and (row < 0).any() and os.path.isfile(path):
        other = read_table(path, columns, empty, windows=True)
        rows = _rows_of(images, path, other)
        if (rows >= 0).sum() > (row >= 0).sum():
            return other, rows
    return table, row


def _rows_of(images: Named, path: str, table: Table) -> npt.NDArray[np.int64]:
    """(N,) the row of each image in a table; -1 without one."""
    row = np.full(len(images), -1, np.int64)
    for depth in table.depths:
        paths = (os.path.abspath(images.names(position)) for position in range(len(images)))
        tails = (parts_of(path)[-depth:] for path in paths)
        keys = np.fromiter((key_of(tail) if len(tail) == depth else 0 for tail in tails), np.int64, len(images))
        candidate = np.searchsorted(table.keys, keys).clip(max=len(table.keys) - 1)
        row = np.where((row < 0) & (table.keys[candidate] == keys), candidate, row)
    for position in np.flatnonzero(row < 0):
        row[position] = _row_of_any(_stems(images.names(int(position))), table)
    times = np.bincount(row[row >= 0], minlength=1)
    if times.max() > 1:
        one, other = (images.names(int(position)) for position in np.flatnonzero(row == times.argmax())[:2])
        line = table.lines[times.argmax()]
        raise UserError(f"line {line} of {path} may mean {one} or {other}; give paths relative to the images' folder")
    return row


def _stems(path: str) -> list[str]:
    """The absolute path of a file without its suffix."""
    return stems_of(os.path.abspath(path))


def _row_of_any(paths: Sequence[str], table: Table) -> int:
    """The row of the first of some paths, or of the last parts of it; -1 without one."""
    tails = (parts_of(path)[-depth:] for depth in table.depths for path in paths)
    keys = np.array([key_of(tail) for tail in tails], np.int64)
    candidate = np.searchsorted(table.keys, keys).clip(max=len(table.keys) - 1)
    found = candidate[table.keys[candidate] == keys]
    return int(found[0]) if len(found) else -1


def _hint(images: Named, table: Table, row: npt.NDArray[np.int64]) -> str:
    """Why images have no row, in words that follow the name of the table; "" if unknown."""
    for position in np.flatnonzero(row < 0)[:_TRIED]:
        path = os.path.abspath(images.names(int(position)))
        folder, name = os.path.split(path)
        bare = os.path.join(folder, _ZEROS.sub("", name))
        if bare != path and _row_of_any([bare, *stems_of(bare)], table) >= 0:
            return ", whose names lack their leading zeros (spreadsheets remove these unless the column is text)"
    return ""
