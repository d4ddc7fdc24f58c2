"""The slides of a folder, a text list or a glob pattern, in a deterministic order."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path

from densepath.core.errors import UserError
from densepath.sources.listing import SUFFIXES as IMAGES
from densepath.sources.listing import Passed, list_images
from densepath.sources.slides.dicom_slide import is_slide, series_of
from densepath.sources.slides.open import open_slide
from densepath.sources.tiles.tile_files import is_tile_folder

SUFFIXES = (
    ".svs",
    ".tif",
    ".tiff",
    ".btf",
    ".ndpi",
    ".mrxs",
    ".scn",
    ".bif",
    ".vms",
    ".vmu",
    ".svslide",
    ".czi",
    ".dcm",
)
_ALSO_IMAGES, _DICOM = (".tif", ".tiff"), ".dcm"
_AGAIN = "repeated slides"
_KINDS = "slide (SVS, TIFF, NDPI, MRXS, SCN, BIF, VMS, CZI, DICOM)"


def find_slides(data: str | Path, exclude: Sequence[str] = (), passed: Passed | None = None) -> list[str]:
    """The paths of slides, without files in folders that densepath wrote.

    A DICOM slide has many files: its path is that of the first one of its series. A slide is found once, even if links
    lead to it, or a list names it again.

    Args:
        data: a folder with subfolders, a text list (.txt, .csv, .tsv), a quoted glob pattern, or one slide.
        exclude: patterns of paths, folders or names to leave out.
        passed: what was passed over is added to it.

    Raises:
        UserError: no slide is found.
    """
    passed = passed or Passed()
    names = list_images(data, exclude, passed, runs=False, suffixes=SUFFIXES, kinds=_KINDS)
    return list(_once(_one_of_each(names), passed))


def holds_slides(data: str | Path, exclude: Sequence[str] = ()) -> bool:
    """Whether data are slides, not images: a file has the suffix of a format of slides, or all are TIFFs, and the first
    is a pyramid. A folder that ``densepath tile`` wrote holds slides.

    Args:
        data, exclude: as for :func:`find_slides`, or anything else.

    Raises:
        UserError: nothing is there.
    """
    if is_tile_folder(data):
        return True
    try:
        names = list_images(data, exclude, runs=False, suffixes=(*SUFFIXES, *IMAGES))
    except UserError:
        if not os.path.exists(data):
            raise
        return False  # not a list of files, or empty
    endings = {os.path.splitext(name)[1].lower() for name in names}
    if endings.intersection(SUFFIXES) - {*_ALSO_IMAGES, _DICOM}:
        return True
    if _DICOM in endings:  # of a slide, or radiographs
        return is_slide(next(name for name in names if name.lower().endswith(_DICOM)))
    if not endings.issubset(_ALSO_IMAGES):
        return False
    try:
        return len(open_slide(names[0]).levels) > 1
    except UserError:
        return False


def _once(names: Iterable[str], passed: Passed) -> Iterator[str]:
    """The names without links to files that are among them, and without files that are named again."""
    folder = lru_cache(os.path.realpath)
    files = [(name, os.path.join(folder(os.path.dirname(name)), os.path.basename(name))) for name in names]
    targets = {file: os.path.realpath(file) for _, file in files if os.path.islink(file)}
    taken = {file for _, file in files} - targets.keys()
    found = set()
    for name, file in files:
        target = targets.get(file, file)
        if target in found or (file in targets and target in taken):
            passed.kinds[_AGAIN] += 1
        else:
            found.add(target)
            yield name


def _one_of_each(names: Iterable[str]) -> Iterator[str]:
    found = set()
    for name in names:
        if name.lower().endswith(".dcm"):
            series = os.path.dirname(name), series_of(name) or name
            if series in found:
                continue
            found.add(series)
        yield name
