"""Which patient an image is of, where a ``manifest.csv`` beside the images says so."""

from __future__ import annotations

import csv
import glob
import os
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

from densepath.core.errors import UserError

MANIFEST = "manifest.csv"
_FILE = ("file", "file_name", "filename", "path", "image", "name")
_PATIENT = ("patient", "patient_id", "case", "case_id", "subject", "subject_id")


def patients_of(source: str | Path, names: Sequence[str]) -> dict[str, str]:
    """The patients of images: name -> patient, for those that the manifest knows.

    A manifest lies in the source's folder, in the one above, or in a folder between the source's and images, of which
    it then speaks alone. Its columns are found by their names: a file (relative to the manifest, or its name alone,
    which then stands for every file of that name; with or without suffix) and a patient.

    Args:
        source: a folder, something that lies in one, or a pattern, whose folder is the one before the first wildcard.
        names: paths of images, or the names that a packed store gives them.

    Raises:
        UserError: the manifest cannot be read.
    """
    found: dict[str, str] = {}
    folder = _folder(source)
    for place in [*_below(folder, names), folder, folder.parent]:
        known = _read(place / MANIFEST)
        if known:
            within = place not in (folder, folder.parent)
            for name in names:
                if within and not Path(name).is_relative_to(place):
                    continue
                ways = (os.path.relpath(name, place), name, os.path.basename(name))
                keys = [key for way in ways for key in (way, os.path.splitext(way)[0])]
                patient = next((known[key] for key in keys if key in known), None)
                if patient is not None:
                    found.setdefault(name, patient)
    return found


def _folder(source: str | Path) -> Path:
    path = Path(source)
    if path.is_dir():
        return path
    fixed = list(takewhile(lambda part: not glob.has_magic(part), path.parts))
    return Path(*fixed) if len(fixed) < len(path.parts) else path.parent


def _below(folder: Path, names: Sequence[str]) -> list[Path]:
    """The folders between one and images in it, the deepest first: what lies nearer to an image knows better."""
    between: set[Path] = set()
    for own in {os.path.dirname(name) for name in names}:
        way = Path(own)
        while way not in between and way != folder and way.is_relative_to(folder):
            between.add(way)
            way = way.parent
    return sorted(between, key=lambda way: (-len(way.parts), way))


def _read(path: Path) -> dict[str, str]:
    """File -> patient, the files with their suffixes and without."""
    if not path.is_file():
        return {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as lines:
            table = csv.DictReader(lines)
            columns = {(column or "").strip().lower(): column for column in table.fieldnames or ()}
            file = next((columns[name] for name in _FILE if name in columns), None)
            patient = next((columns[name] for name in _PATIENT if name in columns), None)
            if file is None or patient is None:
                return {}
            pairs = [(row[file].strip(), row[patient].strip()) for row in table if row[file] and row[patient]]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read ({error}); mend it or take it away") from None
    return {os.path.splitext(name)[0]: patient for name, patient in pairs} | dict(pairs)
