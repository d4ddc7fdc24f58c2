"""``densepath data dicom``: a folder of DICOM series."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from densepath.core.errors import UserError
from densepath.datasets.volumes.conversion import Case, Contents, DicomConversion, say_passed, source_folder
from densepath.datasets.volumes.convert import convert
from densepath.sources.volumes.dicom_series import find_series, modality_of
from densepath.sources.volumes.dicom_volume import read_series


def convert_dicom(how: DicomConversion) -> Path:
    """Convert DICOM series to a store: one volume for each series, orientation and size of the slices.

    The source is searched with all its subfolders, without hidden ones, and the names of files do not matter. Slices
    are ordered by their places. A series with a missing slice, with several images at one place, or that cannot be
    decoded is named and left out. Nothing that identifies a patient is copied, paths included: a series is named by a
    digest of its UID, and patients are numbers in the order of their identifiers.

    Returns:
        The folder of the store.

    Raises:
        UserError: there is no series, or none can be read.
    """
    found, passed = find_series(source_folder(how.source))
    if not found:
        raise UserError(
            f"{how.source} holds no DICOM series of two or more grey slices with positions{passed.only()}; check the "
            "path, or export the series again"
        )
    say_passed(passed)
    cases = [
        Case(
            series.name,
            partial(read_series, series, how.gaps, how.target),
            patient=series.patient,
            file=series.slices[0].path,
            inputs=[part.path for part in series.slices],
        )
        for series in found
    ]
    return convert(cases, Contents("dicom", modality_of(found)), how)
