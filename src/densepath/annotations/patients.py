"""Finds the patients of images in a ``manifest.csv`` next to the images, or in their names."""

from __future__ import annotations

import csv
import glob
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import Any

from densepath.core.csv_files import open_table
from densepath.core.digests import digest_of
from densepath.core.errors import UserError, refuse
from densepath.core.spelling import composed, several_spellings
from densepath.core.streams import say
from densepath.core.system import usable_cores
from densepath.core.threads import in_threads
from densepath.sources.dicom_image import patient_id
from densepath.sources.listing import LIST_SUFFIXES, SUFFIXES
from densepath.sources.lists import read_columns

MANIFEST = "manifest.csv"
_FILE = (
    *("file", "file_name", "filename", "path", "image", "name", "filepath", "file_path", "image_path", "image_file"),
    *("image_name", "image_index"),
)
# NIH ChestX-ray14: 00001280_004.png; CheXpert: patient00001/study1/view1_frontal.jpg
_IN_NAMES = re.compile(r"(?:^|/)(?:(patient\d+)/|(\d{8})_\d{3}\.)")
NUMBERED = "DICOM files, numbered"  # patients of one source only
_RANK = "patient_"
PATIENT_COLUMNS = (
    *("patient", "patient_id", "patientid", "case", "case_id", "caseid", "subject", "subject_id", "subjectid"),
)


def patients_of(source: str | Path, names: Sequence[str], manifest: str = MANIFEST) -> dict[str, str]:
    """The patients of images: name -> patient, for those that a manifest lists.

    A manifest lies in the folder of the source, in its parent, or in a folder below it, where it applies only to the
    images of that folder. A source that is a list of images with a column of patients is one. Its columns are found by
    their names: a file (a path relative to the manifest, or only a name, which then applies to every file with that
    name; with or without suffix) and a patient.

    Args:
        source: a folder, a file in a folder, or a pattern (its folder is the part before the first wildcard).
        names: paths of images, or their names in a packed store.
        manifest: the table's file name.

    Raises:
        UserError: the manifest cannot be read, or gives a file two patients.
    """
    found: dict[str, str] = {}
    folder = _folder(source)
    places = [*_below(folder, names), folder, folder.parent]
    listed = [Path(source)] if str(source).lower().endswith(LIST_SUFFIXES) else []
    for table in [*listed, *(place / manifest for place in places)]:
        known, place = _read(table, table in listed), table.parent
        if known:
            within = place not in (folder, folder.parent)
            for name in names:
                if within and not Path(name).is_relative_to(place):
                    continue
                paths = map(composed, (os.path.relpath(name, place), os.path.normpath(name), os.path.basename(name)))
                keys = [key for path in paths for key in (path, os.path.splitext(path)[0])]
                if (key := next((key for key in keys if key in known), None)) is not None:
                    found.setdefault(name, _only_patient(known[key], key, table))
    return found


def _only_patient(patients: Set[str], file: str, table: Path) -> str:
    patient, *others = sorted(patients)
    if others:
        raise UserError(
            f"{table} gives {file} two patients, {patient} and {others[0]}; keep one, or name files by their paths "
            "from its folder"
        )
    return patient


def owners_by_name(source: str | Path, names: Sequence[str]) -> tuple[list[str], str]:
    """The patient of each image, and where patients are found: "" if some are unknown, whose images have their names.

    Patients are those of a manifest (see :func:`patients_of`), those in names as of ChestX-ray14 and CheXpert, or those
    of DICOM files. The latter are numbered among the images of one source: ``NUMBERED`` means that they cannot be
    compared with those of another.

    Args:
        source, names: as for :func:`patients_of`.

    Raises:
        UserError: the manifest cannot be read.
    """
    known = patients_of(source, names)
    for name in names:
        if name not in known and (match := _IN_NAMES.search(name)):
            known[name] = match[1] or match[2]
    where = MANIFEST if known else ""
    files = [name for name in names if name not in known]
    found = dict(zip(files, in_threads(patient_id, files, usable_cores(), "DICOM headers"), strict=True))
    numbers = {patient: number for number, patient in enumerate(sorted({*found.values()} - {""}), 1)}
    known |= {name: f"{_RANK}{numbers[patient]:04d}" for name, patient in found.items() if patient}
    where = NUMBERED if numbers else where
    return [known.get(name, name) for name in names], where if len(known) == len(set(names)) else ""


def check_spelling(patients: Iterable[str]) -> None:
    """Refuse one patient under two names.

    Raises:
        UserError: some differ only in what :func:`~densepath.core.spelling.several_spellings` ignores.
    """
    alike = several_spellings(patients)
    refuse(alike, "patients that differ in capitals, spaces or zeros", "spell each one way")


def comparable_owners(source: str | Path, names: Sequence[str]) -> dict[str, str]:
    """The known patients of images as :func:`owners_by_name`, to be compared with those of other sources.

    Numbers of DICOM files are replaced by digests of their patients, which are numbered by source.

    Raises:
        UserError: the manifest cannot be read.
    """
    owners = owners_by_name(source, names)[0]
    known = {name: owner for name, owner in zip(names, owners, strict=True) if owner != name}
    if any(owner.startswith(_RANK) for owner in known.values()):
        listed = patients_of(source, names)
        files = [name for name, owner in known.items() if owner.startswith(_RANK) and name not in listed]
        for name, patient in zip(files, in_threads(patient_id, files, usable_cores(), "DICOM headers"), strict=True):
            known[name] = f"DICOM {digest_of([patient])[:10]}" if patient else known[name]
    return known


def owners_of_volumes(rows: Sequence[Mapping[str, Any]], source: str | Path) -> tuple[list[str], str]:
    """As :func:`owners_by_name`, of the rows of a store of volumes; a volume without a patient has its own name."""
    known = [row["patient"] for row in rows if row["patient"]]
    where = NUMBERED if known and all(re.fullmatch(rf"{_RANK}\d+", patient) for patient in known) else str(source)
    return [row["patient"] or row["name"] for row in rows], where if len(known) == len(rows) else ""


def patient_in_name(name: str, pattern: str) -> str:
    """The patient in the name of an image: the first group of a regular expression, or all that it matches.

    Args:
        name: a path; its last part is searched first.
        pattern: the regular expression, for messages ``--patient_regex``.

    Raises:
        UserError: it is not a regular expression, or does not match.
    """
    try:
        match = re.search(pattern, Path(name).name) or re.search(pattern, name)
    except re.error as error:
        raise UserError(f"--patient_regex {pattern!r} is not a regular expression ({error}); correct it") from error
    owner: str | None = match[1 if match.re.groups else 0] if match else None
    if owner is None:
        raise UserError(
            f"--patient_regex {pattern!r} does not match the name {name}; it must match the name of every image"
        )
    return owner


def _folder(source: str | Path) -> Path:
    path = Path(source)
    if path.is_dir():
        return path
    fixed = list(takewhile(lambda part: not glob.has_magic(part), path.parts))
    return Path(*fixed) if len(fixed) < len(path.parts) else path.parent


def _below(folder: Path, names: Sequence[str]) -> list[Path]:
    """The folders between ``folder`` and images in it, deepest first: the manifest nearest to an image counts."""
    between: set[Path] = set()
    for name in {os.path.dirname(name) for name in names}:
        path = Path(name)
        while path not in between and path != folder and path.is_relative_to(folder):
            between.add(path)
            path = path.parent
    return sorted(between, key=lambda path: (-len(path.parts), path))


def _read(path: Path, listed: bool) -> dict[str, set[str]]:
    """File -> its patient, or patients, of a manifest or of a list of images; each file with and without its suffix."""
    if not path.is_file():
        return {}
    owners: dict[str, set[str]] = {}
    for name, patient in _of_list(path) if listed else _of_manifest(path):
        owners.setdefault(name, set()).add(patient)
    stems: dict[str, set[str]] = {}
    for name, known in owners.items():
        stems.setdefault(os.path.splitext(name)[0], set()).update(known)
    return {stem: known for stem, known in stems.items() if len(known) == 1} | owners


def _of_list(path: Path) -> Iterator[tuple[str, str]]:
    for name, (patient,) in read_columns(str(path), SUFFIXES, PATIENT_COLUMNS):
        if patient:
            yield from ((spelling, patient) for spelling in _spellings(name))


def _of_manifest(path: Path) -> Iterator[tuple[str, str]]:
    try:
        with open_table(path, errors="surrogateescape") as table:
            file, patient = table.column(_FILE), table.column(PATIENT_COLUMNS)
            if file is None or patient is None:
                what = "files" if file is None else "patients"
                names = _FILE if file is None else PATIENT_COLUMNS
                _say_once(
                    f"densepath: warning: {path} has no column of {what}, so its patients are not used; call that "
                    f"column {names[0]} (or {', '.join(names[1:4])})"
                )
                return
            for _, row in table.rows():
                if row[file] and row[patient]:
                    yield from ((spelling, row[patient]) for spelling in _spellings(row[file]))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read ({error}); fix it or delete it") from None


@cache
def _say_once(line: str) -> None:
    """A manifest is read again for each purpose."""
    say(line)


def _spellings(name: str) -> set[str]:
    """A path as the table has it, and with "/" between folders."""
    return {composed(os.path.normpath(each)) for each in (name, name.replace("\\", "/"))}
