"""Lists of published images with their classes and official split: data and labels of ``densepath classify``."""

from __future__ import annotations

import os
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from densepath.core.csv_files import write_rows
from densepath.core.digests import digest_of_file
from densepath.core.errors import UserError, first_few, refuse
from densepath.core.files import atomic_write
from densepath.core.streams import say, write_line
from densepath.core.system import usable_cores, with_progress
from densepath.core.threads import in_threads
from densepath.datasets.published import Published
from densepath.sources.corrupt import CorruptImage
from densepath.sources.decode import read_header

LIST = "labels.csv"


@dataclass(frozen=True)
class Labelled:
    """An image as its authors list it.

    Args:
        file: its path.
        label: the name of its class.
        split: train or test.
    """

    file: Path
    label: str
    split: str


def write_list(dest: Path, images: Sequence[Labelled], published: Published, listing: Path, side: int) -> Path:
    """Write ``labels.csv`` with file, label and split, after a check of all files; nothing is copied.

    Images of the same bytes, other sizes and counts than published are reported.

    Args:
        dest: a new folder.
        images: all of them.
        published: what the authors say.
        listing: the authors' list, for messages.
        side: pixels of a side as published.

    Raises:
        UserError: a file is missing or cannot be read, or is listed twice.
    """
    twice = [str(file) for file, count in Counter(image.file for image in images).items() if count > 1]
    refuse(twice, f"images that {listing} lists twice", "keep one line for each")
    missing = [str(image.file) for image in images if not image.file.is_file()]
    refuse(missing, f"{len(missing)} images that {listing} lists do not exist", "restore them, or correct the list")
    files = [image.file for image in images]
    _check_sizes(files, side)
    _report_duplicates(images)
    with atomic_write(dest) as folder:
        folder.mkdir()
        rows = [{"file": os.path.abspath(i.file), "label": i.label, "split": i.split} for i in images]
        write_rows(folder / LIST, ["file", "label", "split"], rows)
    found = Counter(image.split for image in images)
    for split in published.images:
        classes = Counter(image.label for image in images if image.split == split)
        counts = ", ".join(f"{count} {name}" for name, count in sorted(classes.items()))
        write_line(f"{split}: {found[split]} images, {counts}", sys.stdout)
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


def _check_sizes(files: Sequence[Path], side: int) -> None:
    other = []
    headers = in_threads(_size, files, usable_cores(), "headers of images")
    for path, (height, width) in zip(files, with_progress(headers, len(files), "reading headers"), strict=True):
        if (height, width) != (side, side):
            other.append(f"{path.name} ({width} x {height} px)")
    if other:
        say(f"densepath: {len(other)} of {len(files)} images are not {side} x {side} px: {first_few(other)}")


def _size(path: Path) -> tuple[int, int]:
    try:
        header = read_header(path)
    except CorruptImage as error:
        raise UserError(f"{error}; replace the file") from error
    return header.height, header.width


def _report_duplicates(images: Sequence[Labelled]) -> None:
    """Report images of the same bytes, first of all those of both splits."""
    of_size = Counter(image.file.stat().st_size for image in images)
    alike = [image for image in images if of_size[image.file.stat().st_size] > 1]
    same: dict[str, list[Labelled]] = defaultdict(list)
    for image, digest in zip(
        alike, in_threads(digest_of_file, [i.file for i in alike], usable_cores(), "image data"), strict=True
    ):
        same[digest].append(image)
    pairs = [group for group in same.values() if len(group) > 1]
    crossing = [group for group in pairs if len({image.split for image in group}) > 1]
    if pairs:
        shown = first_few([" = ".join(image.file.name for image in group) for group in [*crossing, *pairs]])
        say(
            f"densepath: warning: {len(pairs)} groups of identical images, {len(crossing)} of them in training and "
            f"test: {shown}"
        )
