"""Files of splits: written, reused, and official ones: lists of cases, CLAM's tables, columns of the table."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from densepath.core.csv_files import open_table, refuse_other_encoding
from densepath.core.errors import UserError, counted, first_few, refuse
from densepath.core.files import atomic_write
from densepath.core.json_files import load_json
from densepath.core.streams import say
from densepath.transfer.mil.cohort import Cohort
from densepath.transfer.mil.feature_files import slide_name
from densepath.transfer.mil.splits import PARTS, VALIDATION, Split, by_name, check_splits, with_validation
from densepath.transfer.probe.folds import PART_NUMBERS, Fold, parts_of

SPLITS = "splits.json"
_ORDER = "slides_by"  # a note in it
_CLAM = re.compile(r"splits_(\d+)\.csv")
_FOLD = re.compile(r"[0-9]+(\.0*)?")  # a whole number, as spreadsheets write it


def write_splits(path: Path, cohort: Cohort, splits: Sequence[Split], notes: dict[str, Any]) -> None:
    """Write splits by the names of cases, so that they can be reused.

    The slides of a case are in the order of their names: runs that were begun before keep that of the table.
    """
    folds = [
        {name: [cohort.cases[case] for case in part] for name, part in zip(PARTS, split.parts(), strict=True)}
        for split in splits
    ]
    with atomic_write(path) as part:
        part.write_text(json.dumps({**notes, _ORDER: "name", "folds": folds}, indent=1) + "\n")


def slides_in_order(cohort: Cohort, path: Path) -> Cohort:
    """The cases with their slides in the order of their names, or in that of the table in a run begun in it.

    Args:
        cohort: the cases, with slides in the order of the table.
        path: the splits of the run, if it was begun.
    """
    return cohort if begun_before(path) else cohort.with_slides_by_name()


def begun_before(path: Path) -> bool:
    """Whether a run was begun by a version that kept slides in the order of the table, and took tiles of several kinds.

    Args:
        path: the splits of the run, if it was begun.
    """
    return path.is_file() and f'"{_ORDER}":' not in path.read_text(errors="replace")


def read_splits(source: str | Path, cohort: Cohort, validation: float, seed: int, resumed: bool = False) -> list[Split]:
    """Official splits.

    Args:
        source: a ``splits.json`` of another run; a folder of CLAM's ``splits_K.csv``; or a column of the table, whose
            values are train, val and test, or the number of the fold in which a case is tested.
        cohort: the cases; the column's values are in ``cohort.splits``.
        validation, seed: how validation cases are drawn where the splits have none.
        resumed: whether they are those of a run that is resumed: of targets that nothing is learned from it warns.

    Raises:
        UserError: they cannot be read, or they leak.
    """
    path, column = Path(source), column_of(source)
    if path.suffix == ".json":
        splits = _of_lists(cohort, _json_lists(path), str(source), own=True)
    else:
        found = (
            _of_lists(cohort, _clam_lists(path), str(source))
            if column is None
            else _of_column(cohort, f"the column {column}")
        )
        splits = [Split(*(by_name(cohort, part) for part in split.parts())) for split in found]
    if not splits:
        raise UserError(f"{source} has no folds; use another file")
    check_splits(cohort, splits, str(source), warn=resumed)
    if validation != VALIDATION and any(len(split.validation) for split in splits):
        say(f"densepath: {source} names validation cases, so --validation {validation:g} has no effect on their folds")
    return [
        split if len(split.validation) else with_validation(cohort, Fold(split.train, split.test), validation, seed + n)
        for n, split in enumerate(splits)
    ]


def column_of(source: str | Path | None, path: Path | None = None) -> str | None:
    """The column of the table that official splits are in; None if they are in files.

    A folder that is only called like a column is not meant: it holds no splits.

    Args:
        source: the column, file or folder as it was given.
        path: where the file or folder would lie, if not in the current folder.
    """
    if source is None or Path(source).suffix == ".json":
        return None
    path = Path(source) if path is None else path
    is_folder = path.is_dir() and not (_has_no_slash(source) and not _clam_files(path))
    return None if is_folder else str(source)


def is_column(source: str | Path | None, path: Path | None = None) -> bool:
    """Whether official splits are surely a column: a text with a slash may be the path of files that are not there.

    Args:
        source, path: as for :func:`column_of`.
    """
    column = column_of(source, path)
    return column is not None and _has_no_slash(column)


def _has_no_slash(source: str | Path) -> bool:
    return os.path.basename(source) == str(source)


def _clam_files(folder: Path) -> list[Path]:
    """CLAM's splits_0.csv, splits_1.csv, ... of a folder, in the order of their numbers."""
    numbers = {file: int(match[1]) for file in folder.iterdir() if (match := _CLAM.fullmatch(file.name))}
    return sorted(numbers, key=lambda file: (numbers[file], file))


def _json_lists(path: Path) -> list[list[list[str]]]:
    content = load_json(path, "splits of densepath mil")
    try:
        return [[[str(name) for name in fold.get(part, ())] for part in PARTS] for fold in content["folds"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} does not hold splits as densepath mil writes them; use another file") from error


def _clam_lists(folder: Path) -> list[list[list[str]]]:
    if not (files := _clam_files(folder)):
        raise UserError(f"{folder} has no splits_0.csv, splits_1.csv, ... as CLAM writes them; name another folder")
    lists = []
    for file in files:
        try:
            with open_table(file, errors="surrogateescape") as table:
                parts = [table.column([name]) for name in ("train", "val", "test")]
                rows = [row for _, row in table.rows()]
        except (OSError, UnicodeError, csv.Error) as error:
            raise UserError(f"{file} cannot be read ({error}); use files as CLAM writes them") from error
        if not rows or parts[0] is None or parts[2] is None:
            raise UserError(f"{file} has no columns train, val and test; use files as CLAM writes them")
        columns = [[row[name] if name else "" for row in rows] for name in parts]
        refuse_other_encoding((name for column in columns for name in column), str(file))
        lists.append([[slide_name(name) for name in column if name] for column in columns])
    return lists


def _of_lists(cohort: Cohort, lists: Iterable[list[list[str]]], source: str, own: bool = False) -> list[Split]:
    """Splits from the names of cases or of slides, in their order.

    ``own`` ones mean a case by a name that is also that of a slide.
    """
    cases = {case: {position} for position, case in enumerate(cohort.cases)}
    known: dict[str, set[int]] = {}
    for position, slides in enumerate(cohort.slides):
        for slide in slides:
            for name in (slide, slide.rpartition("/")[2]):
                known.setdefault(name, set()).add(position)
    known = {**known, **cases} if own else {k: known.get(k, set()) | cases.get(k, set()) for k in {**known, **cases}}
    splits, unknown, unclear, placed = [], set(), set(), set()
    for fold, names in enumerate(lists):
        unknown |= {name for part in names for name in part if name not in known}
        unclear |= {name for part in names for name in part if len(known.get(name, ())) > 1}
        parts = [
            list(dict.fromkeys(position for name in part for position in sorted(known.get(name, ())))) for part in names
        ]
        if unclear:
            continue
        for one, other in ((0, 2), (1, 2), (0, 1)):
            shared = [cohort.cases[case] for case in sorted(set(parts[one]) & set(parts[other]))]
            what = f"leak: cases in {PARTS[one]} and {PARTS[other]} of fold {fold} in {source}"
            refuse(shared, what, "put all slides of a patient into one part")
        placed |= {case for part in parts for case in part}
        splits.append(Split(*(np.array(part, np.int64) for part in parts)))
    refuse(sorted(unclear), f"names in {source} that may mean several cases", "give the slides other names")
    if unknown:
        say(f"densepath: not in this study: {counted(len(unknown), 'name')} in {source}: {first_few(sorted(unknown))}")
    if left := [case for position, case in enumerate(cohort.cases) if position not in placed]:
        say(
            f"densepath: {counted(len(left), 'case is', 'cases are')} in no part of {source} and are "
            f"left out: {first_few(left)}"
        )
    return splits


def _of_column(cohort: Cohort, source: str) -> list[Split]:
    values = [value.lower() for value in cohort.splits]
    if not set(values) - set(PART_NUMBERS):
        parts = parts_of(values, "cases", ", and a share of the training cases chooses epoch and thresholds")
        return [Split(*(np.flatnonzero(parts == part) for part in range(3)))]
    if other := [value for value, low in zip(cohort.splits, values, strict=True) if not _FOLD.fullmatch(low)]:
        wrong = next((value for value in other if value.lower() not in PART_NUMBERS), other[0])
        raise UserError(f"{source} has the value {wrong!r}; give train, val and test, or numbers of folds")
    numbers, folds = np.unique([int(float(value)) for value in values], return_inverse=True)
    none = np.array([], np.int64)
    return [Split(np.flatnonzero(folds != k), none, np.flatnonzero(folds == k)) for k in range(len(numbers))]
