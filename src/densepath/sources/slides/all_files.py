"""All files of a slide: some formats have many, of which a list of slides names one."""

from __future__ import annotations

import os
from pathlib import Path

from densepath.sources.patience import patient
from densepath.sources.slides.dicom_slide import files_of_series, is_slide

_INDEX = (".vms", ".vmu")  # Hamamatsu's texts that name the others: KEY=FILE
_LONGEST_INDEX = 2**20  # bytes


@patient
def files_of(slide: str | Path) -> list[str]:
    """The files of a slide, first the one that is named: MRXS, VMS, VMU and DICOM have several.

    Args:
        slide: the file of a slide, or of an image.

    Raises:
        OSError: which files belong to it cannot be read; not if they are missing.
    """
    path = str(slide)
    start, suffix = os.path.splitext(path)
    others: list[str] = []
    try:
        if suffix.lower() == ".mrxs":
            walked = os.walk(start, onerror=_refuse)
            others = [os.path.join(folder, name) for folder, _, names in walked for name in names]
        elif suffix.lower() in _INDEX:
            others = _named_in(path)
        elif suffix.lower() == ".dcm" and is_slide(path):
            others = files_of_series(path)
    except (FileNotFoundError, NotADirectoryError):  # reported where the slide is read
        pass
    return [path, *sorted(name for name in others if os.path.normpath(name) != os.path.normpath(path))]


def _refuse(error: OSError) -> None:
    raise error


def _named_in(path: str) -> list[str]:
    """The files beside a text that names them."""
    with open(path, encoding="latin-1") as file:
        values = {line.partition("=")[2].strip() for line in file.read(_LONGEST_INDEX).splitlines()}
    names = (os.path.join(os.path.dirname(path), value) for value in values - {""})
    return [name for name in names if os.path.isfile(name)]
