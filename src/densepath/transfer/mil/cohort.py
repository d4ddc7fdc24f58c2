"""The cases of a study: slides or patients with their targets, and the files of their features."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from densepath.core.errors import UserError, counted, first_few, refuse
from densepath.core.spelling import number_in, several_spellings
from densepath.core.streams import say
from densepath.transfer.mil.feature_files import Names, check_one_file_each, find_features
from densepath.transfer.mil.merged_classes import merge_classes
from densepath.transfer.mil.slide_table import FOLDERS, Columns, Row, read_slide_table
from densepath.transfer.probe.metrics import Floats, Integers

Grouping = Literal["joined", "averaged", "single"]
Task = Literal["classification", "regression", "survival"]
_THOUSANDS = re.compile(r"[1-9]\d{0,2}(,\d{3})+")
_DOUBTFUL = ("none", "unknown", "not available", "not reported", "missing", "?", "-", "-1")  # classes or missing values
_YES, _NO = ("1", "1.0", "true", "yes", "dead", "deceased"), ("0", "0.0", "false", "no", "alive", "living")


@dataclass(frozen=True, eq=False)
class Cohort:
    """Cases, each of which gets one answer.

    Args:
        cases: (C,) names of patients, or of slides where each slide has its own answer.
        owners: (C,) the number of each case's patient, from 0.
        patients: names of these numbers.
        groups: (C,) numbers of what stays together in folds: patients, or sites.
        targets: (C, T): the class, the number, or (time, event).
        classes: names of the classes; () for other tasks.
        slides: names of the slides of each case.
        files: the files of these slides.
        splits: the text of the column of official splits for each case; "" without one.
        target: name of the target.
        by_patient: where the patients come from; "" if unknown.
    """

    cases: list[str]
    owners: Integers
    patients: list[str]
    groups: Integers
    targets: Floats
    classes: tuple[str, ...]
    slides: list[tuple[str, ...]]
    files: list[tuple[Path, ...]]
    splits: list[str]
    target: str
    by_patient: str

    def __len__(self) -> int:
        return len(self.cases)

    @property
    def labels(self) -> Integers:
        """(C,) classes."""
        return self.targets[:, 0].astype(np.int64)

    @property
    def group(self) -> str:
        """What stays together in folds: "patient" or "site"."""
        return "patient" if np.array_equal(self.groups, self.owners) else "site"

    def with_slides_by_name(self) -> Cohort:
        """The same with the slides of each case in the order of their names, whatever the order of the table."""
        pairs = [sorted(zip(*own, strict=True)) for own in zip(self.slides, self.files, strict=True)]
        slides = [tuple(name for name, _ in own) for own in pairs]
        return replace(self, slides=slides, files=[tuple(file for _, file in own) for own in pairs])

    def describe(self) -> str:
        """The cases in a line."""
        count = sum(map(len, self.slides))
        line = f"{counted(len(self.patients), 'patient')}, {counted(count, 'slide')}"
        if self.classes:
            counts = np.bincount(self.labels, minlength=len(self.classes))
            line += "; " + ", ".join(f"{name} {n}" for name, n in zip(self.classes, counts, strict=True))
        return line


def read_cohort(
    data: str | Path,
    table: str | Path,
    columns: Columns,
    *,
    slide_table: str | Path | None = None,
    classes: Sequence[str] = (),
    grouping: Grouping = "joined",
    task: Task = "classification",
    resumed: bool = False,
) -> Cohort:
    """Match a table with files of features. What has no partner is reported, and left out.

    Args:
        data: a folder of files of features.
        table, columns, slide_table: see :func:`~densepath.transfer.mil.slide_table.read_slide_table`.
        classes: classes that are renamed, merged or left out.
        grouping: whether the slides of a patient are one bag ("joined"), bags whose answers are averaged ("averaged"),
            or cases of their own ("single").
        task: what the target is.
        resumed: as for :func:`~densepath.transfer.mil.slide_table.read_slide_table`.

    Raises:
        UserError: nothing matches; a target is missing or is not of the task; slides of a patient have different
            targets; or there is only one class.
    """
    found = find_features(data)
    known = Names(list(found))
    listed = read_slide_table(table, columns, slide_table, list(found), resumed)
    rows = merge_classes(listed.rows, classes)
    names = [row.slide if str(table) == FOLDERS else known.find(row.slide, row.place) for row in rows]
    missing = [row.slide for row, name in zip(rows, names, strict=True) if name is None]
    elsewhere = {slide: others[0] for slide in missing if (others := known.namesakes(slide))}
    also = "".join(f"; {other} has the file name of {slide}" for slide, other in list(elsewhere.items())[:1])
    lower = {name.lower(): name for name in found}
    alike = [f"; {row} and {name} differ in capitals" for row in missing if (name := lower.get(row.lower()))]
    also += "".join(alike[:1])
    if len(missing) == len(rows):
        raise UserError(
            f"no slide of {table} has features in {data} (the table has {first_few([r.slide for r in rows])}, "
            f"the folder {first_few(list(found))}{also}); check both"
        )
    there = [(row, name) for row, name in zip(rows, names, strict=True) if name is not None]
    check_one_file_each([found[name] for _, name in there], [row.slide for row, _ in there])
    if missing:
        say(
            f"densepath: left out: {counted(len(missing), 'slide')} of the table without features: "
            f"{first_few(missing)}{also}"
        )
    used = {name for _, name in there}
    if unused := [name for name in found if name not in used]:
        say(f"densepath: not in the table: {counted(len(unused), 'file')} of features: {first_few(unused)}")
    if not listed.by_patient:
        say(
            "densepath: warning: the patients are unknown, so slides of one may be in training and test, which makes "
            "scores too high; name them with --patient"
        )
    if grouping == "single":
        cases = {name: [(row, name)] for row, name in there}
    else:
        cases = {}
        for row, name in there:
            cases.setdefault(row.patient, []).append((row, name))
        for what in ("target", "site", "event", "split"):
            _check_one_value(cases, what, listed.target)
    own = [members[0][0] for members in cases.values()]
    targets, names_of_classes = targets_of(own, task, listed.target, listed.delimiter)
    patients, owners = np.unique([row.patient for row in own], return_inverse=True)
    groups = np.unique([row.site for row in own], return_inverse=True)[1] if columns.site else owners
    if columns.site:
        by_patient: dict[str, list[tuple[Row, str]]] = {}
        for row in own:
            by_patient.setdefault(row.patient, []).append((row, ""))
        _check_one_value(by_patient, "site", "")
    return Cohort(
        list(cases),
        owners.astype(np.int64),
        patients.tolist(),
        groups.astype(np.int64),
        targets,
        names_of_classes,
        [tuple(name for _, name in members) for members in cases.values()],
        [tuple(found[name] for _, name in members) for members in cases.values()],
        [row.split for row in own],
        listed.target,
        listed.by_patient,
    )


def _check_one_value(cases: dict[str, list[tuple[Row, str]]], what: str, target: str) -> None:
    """Refuse patients whose slides differ in the target, the site or the split."""
    mixed = [name for name, members in cases.items() if len({getattr(row, what) for row, _ in members}) > 1]
    remedy = {
        "target": "use --grouping single, where each slide has its own answer",
        "split": "a patient in two parts is a leak: put all slides of a patient into one",
    }
    named = f"values of {target}" if what == "target" else f"values of the {what}"
    refuse(mixed, f"patients whose slides have several {named}", remedy.get(what, "correct the table"))


def targets_of(
    rows: Sequence[Row], task: str, target: str, delimiter: str, known: Sequence[str] = ()
) -> tuple[Floats, tuple[str, ...]]:
    """The targets of cases, as those of :class:`Cohort`, and the names of the classes.

    Args:
        rows: of the cases.
        task: what the target is.
        target: name of its column.
        delimiter: of the table.
        known: the classes, if they are given; default: those of the rows.

    Raises:
        UserError: a target is not of the task, or of no class that is known; or all are equal.
    """
    if task == "classification" and known:
        unknown = sorted({row.target for row in rows} - {*known})
        remedy = (
            f'the classes are {first_few(list(known), 12)}; rename, merge or leave out others with --classes "NAME=A,B"'
        )
        refuse(unknown, f"classes of {target} that the models do not know", remedy)
        return np.array([[known.index(row.target)] for row in rows], np.float64), tuple(known)
    if task == "classification":
        classes, labels = np.unique([row.target for row in rows], return_inverse=True)
        if len(classes) < 2:
            raise UserError(f"all cases have the {target} {classes[0]}; two or more classes are needed")
        unlike = several_spellings(classes.tolist())
        refuse(unlike, "classes that differ in capitals, spaces or zeros", 'merge them: --classes "NAME=A,B"')
        if doubtful := [name for name in classes if name.lower() in _DOUBTFUL]:
            named = f"{target} {first_few(doubtful)}"
            say(f"densepath: {named} is taken as a class; --classes with the others leaves it out")
        if len(classes) > max(20, len(rows) // 2):
            raise UserError(
                f"{target} has {len(classes)} different values in {len(rows)} cases, which are no classes; use another "
                "--target, or --task regression for numbers"
            )
        return labels.astype(np.float64)[:, None], tuple(classes.tolist())
    values = [[number] for number in _numbers(rows, target, delimiter)]
    if task == "survival":
        refuse([row.place for row in rows if not row.event], "rows without an event", "name its column with --event")
        early = [row.place for row, own in zip(rows, values, strict=True) if own[0] < 0]
        refuse(early, f"rows with a {target} before 0", "correct them, or remove these rows")
        values = [[*own, _event(row)] for own, row in zip(values, rows, strict=True)]
        if not any(event for _, event in values):
            raise UserError("no event was observed; survival needs some")
    elif len({own[0] for own in values}) < 2:
        raise UserError(f"all cases have the same {target}; there is nothing to predict")
    return np.array(values), ()


def _numbers(rows: Sequence[Row], target: str, delimiter: str) -> list[float]:
    """The numbers in a column, with points, or with decimal commas as spreadsheets in Europe write them."""
    comma = next((row for row in rows if "," in row.target), None)
    point = next((row for row in rows if "." in row.target), None)
    if comma is not None and (point is not None or delimiter == ","):
        also = f", and {point.place} has {point.target!r}" if point else ""
        raise UserError(f"{comma.place} has the {target} {comma.target!r}{also}; write all numbers with points")
    groups = [row for row in rows if _THOUSANDS.fullmatch(row.target)]
    if groups and len(groups) == sum("," in row.target for row in rows):
        raise UserError(
            f"{groups[0].place} has the {target} {groups[0].target!r}, whose comma may divide thousands or decimals; "
            "write all numbers with points, and thousands without a sign"
        )
    return [_number(row.target.replace(",", "."), row, target) for row in rows]


def _number(text: str, row: Row, target: str) -> float:
    try:
        value = number_in(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(
            f"{row.place} has the {target} {row.target!r}, which is not a number; correct it, or remove the row"
        )
    return value


def _event(row: Row) -> float:
    text = row.event.lower()
    if text not in (*_YES, *_NO):
        raise UserError(f"{row.place} has the event {row.event!r}; give 1 (observed) or 0")
    return float(text in _YES)
