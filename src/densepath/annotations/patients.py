"""Finds the patients of images in a ``manifest.csv`` next to the images, or in their names."""

from __future__ import annotations

import csv
import glob
import os
import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence, Set
from functools import cache
from itertools import chain, takewhile
from pathlib import Path, PurePath
from typing import Any

from densepath.core.columns import FILE_COLUMNS, PATIENT_COLUMNS, SLIDE_COLUMNS, SPLIT_OF
from densepath.core.csv_files import open_table, refuse_other_encoding
from densepath.core.digests import digest_of
from densepath.core.errors import UserError, counted, first_few, refuse
from densepath.core.paths import AnyPath
from densepath.core.spelling import composed, is_missing, several_spellings
from densepath.core.streams import say
from densepath.core.system import usable_cores
from densepath.core.threads import in_threads
from densepath.sources.dicom_image import patient_id
from densepath.sources.listing import LIST_SUFFIXES, SUFFIXES
from densepath.sources.lists import read_columns
from densepath.sources.suffixes import stems_of

MANIFEST = "manifest.csv"
# NIH ChestX-ray14: 00001280_004.png; CheXpert: patient00001/study1/view1_frontal.jpg
_IN_NAMES = re.compile(r"(?:^|/)(?:(patient\d+)/|(000[0-3]\d{4})_\d{3}\.)")
_NAMES = "names as of ChestX-ray14 and CheXpert"
NUMBERED = "DICOM files, numbered"  # patients of one source only
_RANK = "patient_"


def patients_of(
    source: AnyPath, names: Sequence[str], manifest: str = MANIFEST, images: AnyPath | None = None
) -> dict[str, str]:
    """The patients of images: name -> patient, for those that a manifest lists.

    A manifest lies in the folder of the source, in its parent, or in a folder below it, where it applies only to the
    images of that folder. A source that is a list of images with a column of patients is one. Its columns are found by
    their names: a file (a path relative to the manifest, or only a name, which then applies to every file with that
    name, except in lists and where that file lies next to the manifest; with or without suffix) and a patient.

    Args:
        source: a folder, a file in a folder, or a pattern (its folder is the part before the first wildcard).
        names: paths of images, or their names in a packed store.
        manifest: the table's file name.
        images: the folder of the images, if it is not that of the source, whose manifest may name them as if they were
            in the source. What it does not list is searched in a manifest of the images.

    Raises:
        UserError: the manifest cannot be read, or gives a file two patients.
    """
    found: dict[str, str] = {}
    folder = Path(os.path.abspath(folder_of(source)))
    moved = {} if images is None else {name: folder / os.path.relpath(name, images) for name in names}
    for table, known in _tables(source, names, manifest):
        place, listed = Path(os.path.abspath(table.parent)), table == Path(source)
        within = place not in (folder, folder.parent)
        inside = [name for name in names if not within or Path(os.path.abspath(name)).is_relative_to(place)]
        keys = {name: _key(name, moved.get(name), known, place, listed) for name in inside}
        for name, key in keys.items():
            if key is not None:
                found.setdefault(name, _only_patient(known[key], key, table))
        if keys and not any(keys.values()) and place != folder.parent:
            _say_once(
                f"densepath: warning: {table} lists none of {counted(len(keys), 'image')}: its first file is "
                f"{next(iter(known))}, the first image {inside[0]}"
            )
    return found if images is None else patients_of(images, names, manifest) | found


def _tables(source: AnyPath, names: Sequence[str], manifest: str) -> Iterator[tuple[Path, dict[str, set[str]]]]:
    """The tables that give patients of a source, the nearest to its images first, and what each says of files."""
    folder = Path(os.path.abspath(folder_of(source)))
    listed = [Path(source)] if str(source).lower().endswith(LIST_SUFFIXES) else []
    for table in [*listed, *(place / manifest for place in [*_below(folder, names), folder, folder.parent])]:
        if known := _read(table, table in listed):
            yield table, known


def _key(name: str, moved: Path | None, known: Container[str], place: Path, listed: bool) -> str | None:
    """What a table of patients calls an image, or None."""
    paths = [name] if moved is None else [name, str(moved)]
    exact = [spelled for path in paths for spelled in (os.path.relpath(path, place), os.path.normpath(path))]
    if (key := _first(exact, known)) is not None or listed:
        return key
    base = os.path.basename(name)
    return None if (key := _first([base], known)) is None or (place / base).is_file() else key


def _first(paths: Iterable[str], known: Container[str]) -> str | None:
    keys = (key for path in map(composed, paths) for key in (path, *stems_of(path)))
    return next((key for key in keys if key in known), None)


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
    where = MANIFEST if known else ""
    for name in names:
        if name not in known and (match := _IN_NAMES.search(name)):
            known[name] = match[1] or match[2]
            where = where or _NAMES
    files = [name for name in names if name not in known]
    found = dict(zip(files, in_threads(patient_id, files, usable_cores(), "DICOM headers"), strict=True))
    numbers = {patient: number for number, patient in enumerate(sorted({*found.values()} - {""}), 1)}
    known |= {name: f"{_RANK}{numbers[patient]:04d}" for name, patient in found.items() if patient}
    where = NUMBERED if numbers else where
    return [known.get(name, name) for name in names], where if len(known) == len(set(names)) else ""


def stated_patient(image: Mapping[str, Any]) -> str | None:
    """The patient of an image of a COCO JSON, from ``patient`` or ``patient_id``; None if it is missing or empty."""
    stated = (str(image[key]).strip() for key in ("patient", "patient_id") if image.get(key) is not None)
    return next((patient for patient in stated if not is_missing(patient)), None)


def check_spelling(
    patients: Iterable[str], names: Sequence[str] = (), source: AnyPath | None = None, warn: bool = False
) -> None:
    """Refuse one patient under two names.

    Args:
        patients: of images.
        names: of the images, which stand for unknown patients and are not compared.
        source: where the images were found, as for :func:`patients_of`, so that the message names its tables.
        warn: whether to print a warning instead.

    Raises:
        UserError: some differ only in what :func:`~densepath.core.spelling.several_spellings` ignores.
    """
    alike = several_spellings({*patients}.difference(names))
    if not alike:
        return
    found = [] if source is None else [(t, chain(*known.values())) for t, known in _tables(source, names, MANIFEST)]
    tables = [str(table) for table, known in found if not {*known}.isdisjoint(alike)]
    what = f"patients{f' in {first_few(tables)}' * bool(tables)} that differ in capitals, spaces or zeros"
    if not warn:
        refuse(alike, what, "spell each one way")
    _say_once(
        f"densepath: warning: {what} count as different ones: {first_few(alike)}; spell each one way for other runs"
    )


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


def splits_of_volumes(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The split of each row of a store of volumes, in lower case; [] if they are not divided into those of training,
    validation and test."""
    splits = [str(row["split"]).lower() for row in rows]
    return splits if {*splits} <= set(SPLIT_OF) and len({*splits}) > 1 else []


def patient_in_name(name: str, pattern: str, place: str = "") -> str:
    """The patient in the name of an image: the first group of a regular expression, or all that it matches.

    Args:
        name: a path; its last part is searched first, then all of it, then both without suffix.
        pattern: the regular expression, for messages ``--patient_regex``.
        place: a longer path, which is searched last: its end first, then with one folder more at a time.

    Raises:
        UserError: it is not a regular expression, does not match, or matches nothing in the name.
    """
    whole = (name, *stems_of(name)[-1:])
    folders = PurePath(place).parts
    ends = ("/".join(folders[start:]) for start in range(len(folders) - 1, -1, -1))
    try:
        matches = (re.search(pattern, text) for path in whole for text in (os.path.basename(path), path))
        match = next(filter(None, chain(matches, (re.search(pattern, text) for text in ends))), None)
    except re.error as error:
        raise UserError(f"--patient_regex {pattern!r} is not a regular expression ({error}); correct it") from error
    owner: str | None = match[1 if match.re.groups else 0] if match else None
    if not owner:
        raise UserError(
            f"--patient_regex {pattern!r} does not match the name {name}; it must match the name of every image"
        )
    return owner


def folder_of(source: AnyPath) -> Path:
    """The folder of a source, as for :func:`patients_of`."""
    path = Path(source)
    if path.is_dir():
        return path
    fixed = list(takewhile(lambda part: not glob.has_magic(part), path.parts))
    return Path(*fixed) if len(fixed) < len(path.parts) else path.parent


def _below(folder: Path, names: Sequence[str]) -> list[Path]:
    """The folders between ``folder`` and images in it, deepest first: the manifest nearest to an image counts."""
    between: set[Path] = set()
    for name in {os.path.abspath(os.path.dirname(name)) for name in names}:
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
        for stem in stems_of(name):
            stems.setdefault(stem, set()).update(known)
    return owners | {stem: known for stem, known in stems.items() if len(known) == 1 and stem not in owners}


def _of_list(path: Path) -> Iterator[tuple[str, str]]:
    for name, (patient,) in read_columns(str(path), SUFFIXES, PATIENT_COLUMNS):
        if not is_missing(patient):
            yield from ((spelling, patient) for spelling in _spellings(name))


def _of_manifest(path: Path) -> Iterator[tuple[str, str]]:
    try:
        with open_table(path, errors="surrogateescape") as table:
            file, patient = table.column((*FILE_COLUMNS, *SLIDE_COLUMNS)), table.column(PATIENT_COLUMNS)
            if file is None or patient is None:
                what = "files" if file is None else "patients"
                names = FILE_COLUMNS if file is None else PATIENT_COLUMNS
                _say_once(
                    f"densepath: warning: {path} has no column of {what}, so its patients are not used; call that "
                    f"column {names[0]} (or {', '.join(names[1:4])})"
                )
                return
            for number, row in table.rows():
                if row[file] and not is_missing(row[patient]):
                    refuse_other_encoding([row[patient]], f"line {number} of {path}")
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
