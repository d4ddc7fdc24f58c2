"""``densepath data dicom``: a folder of DICOM series."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from densepath.core.closing import command
from densepath.core.csv_files import write_rows
from densepath.core.errors import UserError, counted
from densepath.core.files import check_writable
from densepath.core.streams import say
from densepath.datasets.volumes.conversion import Case, Contents, DicomConversion, say_passed, source_folder
from densepath.datasets.volumes.convert import convert
from densepath.sources.listing import walk
from densepath.sources.volumes.dicom_series import Series, find_series, modality_of
from densepath.sources.volumes.dicom_volume import read_series
from densepath.sources.volumes.open_store import open_volumes
from densepath.sources.volumes.read import SUFFIXES

_COLUMNS = ("volume", "patient", "patient_id", "series_uid", "folder")


def convert_dicom(how: DicomConversion) -> Path:
    """Convert DICOM series to a store: one volume for each series, orientation and size of the slices.

    The source is searched with all its subfolders, without hidden ones, and the names of files do not matter.
    Slices are ordered by their places. A series with a missing slice, with several images at one place, whose
    acquisitions overlap in depth, or that cannot be decoded is named and left out. Nothing that identifies a
    patient is copied, paths included: a series is named by a digest of its UID, and patients are numbers in the
    order of their identifiers. Who they are stands only in the file of ``--key``, if it is given.

    Returns:
        The folder of the store.

    Raises:
        UserError: no series was found, none can be read, or the key would lie in the store or replace another file.
    """
    key = None if how.key is None else _checked_key(Path(how.key), Path(how.dest))
    found, passed = find_series(source_folder(how.source))
    if not found:
        remedy = "check the path, or export the series again"
        if len(files := walk(how.source, SUFFIXES)):
            again = command("data", "volumes", how.source, how.dest)
            remedy = f"convert {counted(len(files), 'file')} of volumes with {again}"
        raise UserError(
            f"{how.source} holds no DICOM series of two or more grey slices with positions{passed.only()}; {remedy}"
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
    dest = convert(cases, Contents("dicom", modality_of(found)), how)
    if key is not None:
        store = open_volumes(dest)
        _write_key(key, found, {store.names(k) for k in range(len(store))})
    return dest


def _checked_key(key: Path, dest: Path) -> Path:
    """The path of the key. Raises UserError if it lies in the store, cannot be written, or is another file."""
    if key.resolve().is_relative_to(dest.resolve()):
        raise UserError(f"{key} lies in the store, which holds nothing that identifies a patient; give --key elsewhere")
    check_writable(key)
    if key.exists():
        with key.open("rb") as file:
            if file.readline().decode("utf-8", "replace").strip() != ",".join(_COLUMNS):
                raise UserError(f"{key} is not a key of an earlier conversion; give --key another path")
    return key


def _write_key(key: Path, found: Sequence[Series], names: set[str]) -> None:
    """Write who the volumes of a store are."""
    rows = []
    for series in found:
        first = series.slices[0]
        values = (
            series.name,
            series.patient or "",
            first.patient,
            first.series,
            os.path.dirname(os.path.abspath(first.path)),
        )
        rows.append(dict(zip(_COLUMNS, values, strict=True)))
    write_rows(key, _COLUMNS, [row for row in rows if row["volume"] in names])
    if key.is_file():
        key.chmod(0o600)
    say(f"densepath: {key} says which patient and series each volume is; keep it apart from the store")
