"""The slides of a folder, a text list or a glob pattern, in a deterministic order."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from densepath.sources.listing import Passed, list_images
from densepath.sources.slides.dicom_slide import series_of

SUFFIXES = (".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".svslide", ".czi", ".dcm")
_KINDS = "slide (SVS, TIFF, NDPI, MRXS, SCN, BIF, VMS, CZI, DICOM)"


def find_slides(data: str | Path, exclude: Sequence[str] = (), passed: Passed | None = None) -> list[str]:
    """The paths of slides. A DICOM slide has many files: its path is that of the first one of its series.

    Args:
        data: a folder with subfolders, a text list (.txt, .csv, .tsv), a quoted glob pattern, or one slide.
        exclude: patterns of paths, folders or names to leave out.
        passed: what was passed over is added to it.

    Raises:
        UserError: no slide is found.
    """
    return list(_one_of_each(list_images(data, exclude, passed, suffixes=SUFFIXES, kinds=_KINDS)))


def _one_of_each(names: Iterable[str]) -> Iterator[str]:
    found = set()
    for name in names:
        if name.lower().endswith(".dcm"):
            series = os.path.dirname(name), series_of(name) or name
            if series in found:
                continue
            found.add(series)
        yield name
