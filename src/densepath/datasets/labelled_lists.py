"""Lists of published images with their classes and official split: data and labels of ``densepath classify``."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from densepath.core.csv_files import read_rows, write_rows
from densepath.core.digests import identical_files
from densepath.core.errors import UserError, counted, first_few, refuse
from densepath.core.files import atomic_write
from densepath.core.streams import say, write_line
from densepath.core.system import usable_cores, with_progress
from densepath.core.threads import in_threads
from densepath.datasets.published import Published
from densepath.datasets.shared_patients import report_patients
from densepath.sources.corrupt import CorruptImage
from densepath.sources.decode import read_header

LIST = "labels.csv"
_REMEDY = "download it again"


@dataclass(frozen=True)
class Labelled:
    """An image as its authors list it.

    Args:
        file: its path.
        label: the name of its class, or of its labels, with | between them.
        split: train, val or test.
        patient: "" if unknown.
        values: of several labels each "0", "1", or "" if it is unknown; they become columns.
    """

    file: Path
    label: str
    split: str
    patient: str = ""
    values: Mapping[str, str] = field(default_factory=dict)


def write_list(dest: Path, images: Sequence[Labelled], published: Published, listing: Path, side: int | None) -> Path:
    """Write ``labels.csv`` with file, label, split and what else is known, after a check of all files; nothing is
    copied. Where a value of several labels is unknown, the column label is not written: it would say that it is absent.

    Images of the same bytes, patients of several splits, other sizes and counts than published are reported.

    Args:
        dest: a new folder.
        images: all of them.
        published: what the authors say.
        listing: the authors' list, for messages.
        side: pixels of a side as published; None if images have any size.

    Raises:
        UserError: a file is missing or cannot be read, or is listed twice.
    """
    twice = [str(file) for file, count in Counter(image.file for image in images).items() if count > 1]
    refuse(twice, f"images that {listing} lists twice", "keep one line for each")
    missing = [str(image.file) for image in images if not image.file.is_file()]
    refuse(missing, f"{listing} lists {counted(len(missing), 'missing image')}", "restore them, or correct the list")
    files = [image.file for image in images]
    _check_sizes(files, side)
    report_duplicates(files, [image.split for image in images])
    report_patients([image.patient for image in images], [image.split for image in images])
    named, labels = any(image.patient for image in images), list(images[0].values)
    whole = all(value for image in images for value in image.values.values())  # a list cannot say "unknown"
    columns = ["file", *(["label"] if whole else []), "split", *(["patient"] if named else []), *labels]
    with atomic_write(dest) as folder:
        folder.mkdir()
        known = ({"label": i.label, "split": i.split, "patient": i.patient, **i.values} for i in images)
        rows = ({"file": os.path.abspath(i.file), **row} for i, row in zip(images, known, strict=True))
        write_rows(folder / LIST, columns, rows)
    found = Counter(image.split for image in images)
    for split in sorted(found, key=[*published.images, *sorted(found)].index):
        own = [image for image in images if image.split == split]
        classes = {name: sum(image.values[name] == "1" for image in own) for name in labels}
        classes = classes or Counter(image.label for image in own)
        counts = ", ".join(f"{count} {name}" for name, count in sorted(classes.items()))
        of = f" of {counted(len({image.patient for image in own}), 'patient')}" if named else ""
        write_line(f"{split}: {counted(found[split], 'image')}{of}, {counts}", sys.stdout)
    published.report(found)
    return dest / LIST


def find_place(source: str | Path, needed: Sequence[str], what: str) -> Path:
    """The folder with all of some files and folders: the source, or the only one in it that has them.

    Raises:
        UserError: there is none, or several.
    """
    source = Path(source)
    if not source.is_dir():
        raise UserError(f"{source} is not a folder; give the one that holds {what}")
    places = [source, *sorted(path for path in source.iterdir() if path.is_dir())]
    found = [place for place in places if all((place / name).exists() for name in needed)]
    if not found:
        raise UserError(f"{source} has no {' and '.join(needed)}, as {what} is published")
    if len(found) > 1 and found[0] != source:
        raise UserError(f"{source} holds {what} several times; give one: {', '.join(map(str, found))}")
    return found[0]


def published_rows(table: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a published table, as published or as a spreadsheet has saved it.

    Raises:
        UserError: it cannot be read, lacks a column, or has no rows.
    """
    rows = read_rows(table, _REMEDY, columns)
    if not rows:
        raise UserError(f"{table} has no rows; {_REMEDY}")
    return rows


def _check_sizes(files: Sequence[Path], side: int | None) -> None:
    other = []
    headers = in_threads(_size, files, usable_cores(), "headers of images")
    for path, (height, width) in zip(files, with_progress(headers, len(files), "reading headers"), strict=True):
        if side is not None and (height, width) != (side, side):
            other.append(f"{path.name} ({width} x {height} px)")
    if other:
        say(f"densepath: {len(other)} of {len(files)} images are not {side} x {side} px: {first_few(other)}")


def _size(path: Path) -> tuple[int, int]:
    try:
        header = read_header(path)
    except CorruptImage as error:
        raise UserError(f"{error}; replace the file") from error
    return header.height, header.width


def report_duplicates(files: Sequence[Path], splits: Sequence[str]) -> None:
    """Report images of the same bytes, first of all those of several splits."""
    groups = identical_files(files)
    crossing = [group for group in groups if len({splits[number] for number in group}) > 1]
    if groups:
        shown = first_few([" = ".join(files[number].name for number in group) for group in [*crossing, *groups]])
        say(
            f"densepath: warning: {counted(len(groups), 'group')} of identical images, {len(crossing)} "
            "of them in several splits: "
            f"{shown}"
        )
