"""Training, validation and test cases by patient: drawn, written, reused, or taken from official splits."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from densepath.annotations.classes import Classes
from densepath.core.csv_files import open_table
from densepath.core.errors import UserError, counted, first_few, refuse
from densepath.core.files import atomic_write
from densepath.core.streams import say
from densepath.transfer.mil.cohort import Cohort
from densepath.transfer.mil.feature_files import slide_name
from densepath.transfer.probe.folds import PART_NUMBERS, Fold, hold_out, make_folds, parts_of, refuse_untrained
from densepath.transfer.probe.metrics import Integers

SPLITS = "splits.json"
_ORDER = "slides_by"  # a note in it
PARTS = ("train", "validation", "test")
_CLAM = re.compile(r"splits_(\d+)\.csv")
_FOLD = re.compile(r"[0-9]+(\.0*)?")  # a whole number, as spreadsheets write it
_BINS = 4  # of numbers, to stratify by


@dataclass(frozen=True, eq=False)
class Split:
    """The cases of a fold.

    Args:
        train, validation, test: positions of cases. Epoch and thresholds are chosen on the validation cases; the test
            cases are used once, by the model that was chosen.
    """

    train: Integers
    validation: Integers
    test: Integers

    def parts(self) -> tuple[Integers, Integers, Integers]:
        """The three parts."""
        return self.train, self.validation, self.test


def make_splits(cohort: Cohort, folds: int, validation: float, seed: int) -> list[Split]:
    """Draw folds, stratified by class, whose groups (patients, or sites) are never divided.

    Args:
        cohort: the cases.
        folds: number of folds.
        validation: share of the other cases that is held out for validation.
        seed: seed of the draw.

    Raises:
        UserError: a class has too few groups.
    """
    if not 0 < validation < 1:
        raise UserError(f"validation is {validation}; give a share between 0 and 1")
    strata = _strata(cohort, np.arange(len(cohort)), folds)
    drawn = make_folds(_classes(cohort, strata), cohort.groups, folds, seed, "cases")
    return [
        with_validation(cohort, Fold(_by_name(cohort, fold.train), _by_name(cohort, fold.test)), validation, seed + n)
        for n, fold in enumerate(drawn)
    ]


def _by_name(cohort: Cohort, cases: Integers) -> Integers:
    """Cases in the order of their names, in which a model sees them, whatever the order of the table."""
    return np.array(sorted(cases.tolist(), key=lambda case: cohort.cases[case]), np.int64)


def with_validation(cohort: Cohort, fold: Fold, share: float, seed: int) -> Split:
    """Hold out a share of the training cases of a fold, by group and stratified.

    Only targets of training cases are looked at. Groups are taken in random order, if they bring the numbers of held
    cases of the classes closer to what is asked for; a class keeps a training case, and gets a validation case if it
    can.

    Raises:
        UserError: a class of the training cases has only one group.
    """
    strata, groups = _strata(cohort, fold.train, 2), np.unique(cohort.groups[fold.train], return_inverse=True)[1]
    counts = np.zeros((groups.max() + 1, strata.max() + 1))  # cases by group and stratum
    np.add.at(counts, (groups, strata), 1)
    rare = int((counts > 0).sum(0).argmin())
    if (counts[:, rare] > 0).sum() < 2:
        raise UserError(
            f"{_classes(cohort, strata).names[rare]} has one patient or site among the training cases of a fold, and "
            "validation needs another; use fewer --folds, or leave this class out"
        )
    chosen = hold_out(counts, share, seed)[groups]
    if not chosen.any():
        raise UserError("the training cases of a fold cannot be divided for validation by patient; use fewer --folds")
    wanted = np.clip(np.round(share * counts.sum(0)), 1, counts.sum(0) - 1).sum()
    if abs(chosen.sum() - wanted) > max(1, 0.2 * wanted):
        say(
            f"densepath: {chosen.mean():.0%} of the training cases of a fold are held out for validation instead of "
            f"{share:.0%}, as patients and sites are not divided"
        )
    return Split(fold.train[~chosen], fold.train[chosen], fold.test)


def check_splits(cohort: Cohort, splits: Sequence[Split], source: str) -> None:
    """Refuse folds that leak or cannot be used.

    Raises:
        UserError: a patient is in two parts of a fold, or a part is empty, or the training cases lack a class.
    """
    for number, split in enumerate(splits):
        members = [{cohort.patients[owner] for owner in cohort.owners[part]} for part in split.parts()]
        for one, other in ((0, 2), (1, 2), (0, 1)):
            shared = sorted(members[one] & members[other])
            refuse(
                shared,
                f"leak: patients that are {PARTS[one]} and {PARTS[other]} cases of fold {number} in {source}",
                "put all slides of a patient into one part",
            )
            both = np.intersect1d(cohort.groups[split.parts()[one]], cohort.groups[split.parts()[other]])
            tested = split.parts()[other]
            named = cohort.owners[tested[np.isin(cohort.groups[tested], both)]]
            refuse(
                sorted({cohort.patients[owner] for owner in named}),
                f"leak: patients of sites with {PARTS[one]} and {PARTS[other]} cases of fold {number} in {source}",
                "put all patients of a site into one part, or leave --site out",
            )
        for name, part in zip(PARTS, split.parts(), strict=True):
            if not len(part) and name != "validation":  # which is drawn
                raise UserError(f"fold {number} of {source} has no {name} case with features; use other splits")
        if cohort.classes:
            trained = np.isin(np.arange(len(cohort.classes)), cohort.labels[split.train])
            refuse_untrained(cohort.classes, trained, f"the training cases of fold {number} of {source}")


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
    return path.is_file() and f'"{_ORDER}":' not in path.read_text()


def read_splits(source: str | Path, cohort: Cohort, validation: float, seed: int) -> list[Split]:
    """Official splits.

    Args:
        source: a ``splits.json`` of another run; a folder of CLAM's ``splits_K.csv``; or a column of the table, whose
            values are train, val and test, or the number of the fold in which a case is tested.
        cohort: the cases; the column's values are in ``cohort.splits``.
        validation, seed: how validation cases are drawn where the splits have none.

    Raises:
        UserError: they cannot be read, or they leak.
    """
    path = Path(source)
    if path.suffix == ".json":
        splits = _of_lists(cohort, _json_lists(path), str(source), own=True)
    else:
        found = (
            _of_lists(cohort, _clam_lists(path), str(source))
            if path.is_dir()
            else _of_column(cohort, f"the column {source}")
        )
        splits = [Split(*(_by_name(cohort, part) for part in split.parts())) for split in found]
    if not splits:
        raise UserError(f"{source} has no folds; use another file")
    check_splits(cohort, splits, str(source))
    return [
        split if len(split.validation) else with_validation(cohort, Fold(split.train, split.test), validation, seed + n)
        for n, split in enumerate(splits)
    ]


def column_of(source: str | Path | None) -> str | None:
    """The column of the table that official splits are in; None if they are in files."""
    return None if source is None or Path(source).suffix == ".json" or Path(source).is_dir() else str(source)


def _json_lists(path: Path) -> list[list[list[str]]]:
    try:
        folds = json.loads(path.read_text())["folds"]
        return [[[str(name) for name in fold.get(part, ())] for part in PARTS] for fold in folds]
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check the path") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} does not hold splits as densepath mil writes them; use another file") from error


def _clam_lists(folder: Path) -> list[list[list[str]]]:
    files = sorted((int(match[1]), file) for file in folder.iterdir() if (match := _CLAM.fullmatch(file.name)))
    if not files:
        raise UserError(f"{folder} has no splits_0.csv, splits_1.csv, ... as CLAM writes them; name another folder")
    lists = []
    for _, file in files:
        try:
            with open_table(file, errors="surrogateescape") as table:
                parts = [table.column([name]) for name in ("train", "val", "test")]
                rows = [row for _, row in table.rows()]
        except (OSError, UnicodeError, csv.Error) as error:
            raise UserError(f"{file} cannot be read ({error}); use files as CLAM writes them") from error
        if not rows or parts[0] is None or parts[2] is None:
            raise UserError(f"{file} has no columns train, val and test; use files as CLAM writes them")
        columns = [[row[name] if name else "" for row in rows] for name in parts]
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


def _strata(cohort: Cohort, cases: Integers, least: int) -> Integers:
    """(n,) what some cases are stratified by, from 0, from their targets alone.

    The class; or the quartile of the number, for survival with whether there was an event. Bins are as many as leave
    ``least`` groups in each.
    """
    if cohort.classes:
        return cohort.labels[cases]
    numbers, groups = cohort.targets[cases, 0], cohort.groups[cases]
    events = cohort.targets[cases, 1] if cohort.targets.shape[1] == 2 else np.zeros(len(cases))
    strata = np.zeros(len(cases), np.int64)
    for bins in range(_BINS, 0, -1):
        edges = np.quantile(numbers, np.linspace(0, 1, bins + 1)[1:-1])
        strata = np.unique(events * bins + np.searchsorted(edges, numbers), return_inverse=True)[1].astype(np.int64)
        if all(len(np.unique(groups[strata == stratum])) >= least for stratum in np.unique(strata)):
            break
    return strata


def _classes(cohort: Cohort, strata: Integers) -> Classes:
    names = cohort.classes or tuple(f"stratum {number} of {cohort.target}" for number in np.unique(strata))
    return Classes(names, torch.from_numpy(strata.astype(np.int32)))
