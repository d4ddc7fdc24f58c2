"""Answers of ``densepath predict`` for new slides compared with true ones: ``densepath score`` for a run of ``mil``."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from densepath.core.columns import plain_head
from densepath.core.csv_files import read_rows
from densepath.core.errors import UserError, counted, first_few, refuse
from densepath.core.files import atomic_write, require_new_folder
from densepath.core.streams import say, say_left_out
from densepath.runs.closing import draw_safely
from densepath.transfer.mil.cohort import Cohort, targets_of
from densepath.transfer.mil.feature_files import Names
from densepath.transfer.mil.merged_classes import merge_classes
from densepath.transfer.mil.pictures import draw_pictures
from densepath.transfer.mil.results import (
    PREDICTIONS,
    SCORES,
    Outcome,
    answer_columns,
    describe,
    scores_of,
    write_results,
)
from densepath.transfer.mil.slide_table import (
    FOLDERS,
    Columns,
    Row,
    SlideTable,
    has_column,
    has_slides,
    read_slide_table,
)
from densepath.transfer.probe.metrics import Floats

ANSWERS, SLIDES = "answers.json", "slides.csv"
_REMEDY = "predict with the same command again, which keeps the answers"


@dataclass(frozen=True)
class AnswerKind:
    """What the answers for slides and patients are.

    Args:
        task: "classification", "regression" or "survival".
        target: name of the target in the training.
        classes: names of the classes; () for other tasks.
    """

    task: str
    target: str
    classes: tuple[str, ...]

    def write(self, folder: Path) -> None:
        """Write it beside the answers."""
        with atomic_write(folder / ANSWERS) as part:
            part.write_text(json.dumps(vars(self), indent=1) + "\n")

    @staticmethod
    def read(folder: Path) -> AnswerKind:
        """Read it.

        Raises:
            UserError: it is missing or invalid.
        """
        path = folder / ANSWERS
        try:
            record = json.loads(path.read_text())
            return AnswerKind(record["task"], str(record["target"]), tuple(map(str, record["classes"])))
        except (OSError, ValueError, TypeError, LookupError) as error:
            raise UserError(f"{path} is missing or not readable; {_REMEDY}") from error


@dataclass(frozen=True, eq=False)
class _Answered:
    """The answers of a folder.

    Args:
        cases: (C,) names of patients, or of slides.
        patients: (C,) their patients.
        values: (C, K) mean probabilities, numbers or log risks.
        predicted: (C,) classes.
        slides: the slides of each case, those that could be read.
    """

    cases: list[str]
    patients: list[str]
    values: Floats
    predicted: list[int]
    slides: list[tuple[str, ...]]


def holds_answers(predictions: str | Path) -> bool:
    """Whether predictions are the folder of ``densepath predict`` with a run of ``mil``, or its patient-preds.csv.

    Raises:
        UserError: they are answers of ``mil`` itself, or without the table of their slides.
    """
    folder = _folder(predictions)
    if not (folder / PREDICTIONS).is_file():
        return False
    if (folder / SCORES).is_file():
        raise UserError(
            f"{folder / PREDICTIONS} holds the answers that densepath mil or score wrote, whose scores are in "
            f"{folder / SCORES}; for other slides give the folder of densepath predict"
        )
    if not (folder / SLIDES).is_file():
        raise UserError(f"{folder / PREDICTIONS} has no {SLIDES} next to it; give the folder of densepath predict")
    return True


def _folder(predictions: str | Path) -> Path:
    path = Path(predictions)
    return path.parent if path.name == PREDICTIONS else path


def score_answers(
    predictions: str | Path, table: str | Path, columns: Columns, classes: Sequence[str], out: str | Path | None
) -> tuple[dict[str, float], dict[str, Path]]:
    """The scores of ``densepath mil`` for answers on slides that were not in its study (external validation).

    Args:
        predictions: the folder of ``densepath predict``, or its patient-preds.csv.
        table, columns: the true answers, see :func:`~densepath.transfer.mil.slide_table.read_slide_table`; a table of
            patients needs no column of slides.
        classes: classes of the table that are renamed, merged or left out.
        out: a new folder for the files that ``mil`` writes for its test cases; None for none.

    Returns:
        The scores, and the files.

    Raises:
        UserError: the table or the answers are missing or invalid, no case is in both, or the table has classes that
            the models do not know.
    """
    source = _folder(predictions)
    folder = None if out is None else require_new_folder(out, "the scores", sources=[source])
    kind = AnswerKind.read(source)
    answered = _read(source, kind)
    cohort, kept = _cohort(source, answered, kind, table, columns, classes)
    tested = Outcome(
        cohort,
        np.arange(len(kept)),
        np.zeros(len(kept), np.int64),
        answered.values[kept],
        np.array(answered.predicted, np.int64)[kept],
    )
    say(f"densepath: {cohort.describe()}")
    scores = scores_of(tested, kind.task, 0)
    say(f"densepath: {describe(scores)}")
    values = {name: score.value for name, score in scores.items()}
    if folder is None:
        return values, {}
    folder.mkdir(parents=True, exist_ok=True)
    notes: dict[str, Any] = {"task": kind.task, "target": cohort.target, "classes": list(kind.classes)}
    write_results(tested, scores, {**notes, "predictions": str(source), "true_answers": str(table)}, folder, kind.task)
    files = {"scores": folder / SCORES, "predictions": folder / PREDICTIONS}
    if kind.classes and draw_safely(lambda: draw_pictures(tested, scores, folder)["roc"]):
        files["pictures"] = folder / "roc.png"
    return values, files


def _read(source: Path, kind: AnswerKind) -> _Answered:
    """The answers of all cases that have one."""
    columns = answer_columns(kind.target, kind.classes, kind.task)
    pred = ["pred"] if kind.classes else []
    rows = read_rows(source / PREDICTIONS, _REMEDY, ["PATIENT", *pred, *columns])
    slides = read_rows(source / SLIDES, _REMEDY, ["slide", "PATIENT", "problem"])
    single = bool(rows) and "SLIDE" in rows[0]
    owned: dict[str, list[str]] = {}
    for row in slides:
        if not row["problem"]:
            owned.setdefault(row["slide"] if single else row["PATIENT"], []).append(row["slide"])
    cases = [row["SLIDE" if single else "PATIENT"] for row in rows]
    try:
        values = np.array([[float(row[name]) for name in columns] for row in rows], np.float64)
        chosen = [kind.classes.index(row["pred"]) if pred else 0 for row in rows]
    except ValueError as error:
        raise UserError(f"{source / PREDICTIONS} has answers that are no numbers or no classes; {_REMEDY}") from error
    patients = [row["PATIENT"] for row in rows]
    return _Answered(cases, patients, values, chosen, [tuple(owned.get(case, ())) for case in cases])


def _cohort(
    source: Path,
    answered: _Answered,
    kind: AnswerKind,
    table: str | Path,
    columns: Columns,
    classes: Sequence[str],
) -> tuple[Cohort, list[int]]:
    """The cases with an answer and a true one, and their positions among the answers."""
    there = [slide for own in answered.slides for slide in own]
    listed, rows, strangers = _true_answers(source, there, kind, table, columns, classes)
    own = {k: found for k, slides in enumerate(answered.slides) if (found := [rows[s] for s in slides if s in rows])}
    if not own:
        raise UserError(
            f"{table} has none of the {counted(len(there), 'slide')} of {source} (the table has "
            f"{first_few(strangers)}, the answers {first_few(there)}); check both"
        )
    say_left_out(strangers, "slide", f"of {table} without an answer in {source}")
    without = [case for k, case in enumerate(answered.cases) if k not in own]
    say_left_out(without, "case", f"of {source} without a row in {table}")
    mixed = [answered.cases[k] for k, found in own.items() if len({(r.target, r.event) for r in found}) > 1]
    refuse(mixed, f"cases whose slides have several values of {listed.target}", "correct the table")
    owners = _patients(answered, own, listed.by_patient)
    first = [found[0] for found in own.values()]
    targets, _ = targets_of(first, kind.task, listed.target, listed.delimiter, kind.classes)
    names, numbers = np.unique(owners, return_inverse=True)
    kept = list(own)
    cohort = Cohort(
        cases=[answered.cases[k] for k in kept],
        owners=numbers.astype(np.int64),
        patients=names.tolist(),
        groups=numbers.astype(np.int64),
        targets=targets,
        classes=kind.classes,
        slides=[answered.slides[k] for k in kept],
        files=[() for _ in kept],
        splits=[""] * len(kept),
        target=listed.target,
        by_patient=listed.by_patient,
    )
    return cohort, kept


def _true_answers(
    source: Path, there: Sequence[str], kind: AnswerKind, table: str | Path, columns: Columns, classes: Sequence[str]
) -> tuple[SlideTable, dict[str, Row], list[str]]:
    """A table, its rows by the answered slides ``there``, and its other slides."""
    if classes and not kind.classes:
        raise UserError(f"classes: only for answers that are classes, and these are of {kind.task}; leave it out")
    if columns.target is None and has_column(table, kind.target):
        columns = replace(columns, target=kind.target)
    by_slide = has_slides(table, columns)
    listed = read_slide_table(table, columns, None if by_slide else source / SLIDES, there)
    if plain_head(listed.target) != plain_head(kind.target):
        say(f"densepath: {kind.target} of the answers is compared with {listed.target} of {table}")
    rows, strangers = _by_slide(listed, there, table, classes)
    patients = [row.patient for row in listed.rows]
    if by_slide and not rows and columns.slide is None and listed.by_patient and len({*patients}) == len(patients):
        # A table of patients, with their names or pictures in a column that is of slides in others.
        listed = read_slide_table(table, columns, source / SLIDES, there)
        rows, strangers = _by_slide(listed, there, table, classes)
    return listed, rows, strangers


def _by_slide(
    listed: SlideTable, there: Sequence[str], table: str | Path, classes: Sequence[str]
) -> tuple[dict[str, Row], list[str]]:
    """The rows of a table by the slides that they mean, and the slides that are not there."""
    known = Names(there)
    rows: dict[str, Row] = {}
    strangers = []
    for row in merge_classes(listed.rows, classes):
        slide = row.slide if str(table) == FOLDERS else known.find(row.slide, row.place)
        if slide is None:
            strangers.append(row.slide)
        elif slide in rows:
            raise UserError(f"{row.place} and {rows[slide].place} mean the same slide {slide}; keep one of them")
        else:
            rows[slide] = row
    return rows, strangers


def _patients(answered: _Answered, own: Mapping[int, Sequence[Row]], by_table: str) -> list[str]:
    """The patient of each case: of the table, or if it has none, that of the answers.

    Raises:
        UserError: a case has slides of several patients.
    """
    if not by_table:
        found = [answered.patients[k] for k in own]
        if found == [answered.slides[k][0] for k in own]:
            say(
                "densepath: warning: the patients are unknown, so intervals count each slide as one; name them with "
                "--patient"
            )
        return found
    several = [answered.cases[k] for k, rows in own.items() if len({row.patient for row in rows}) > 1]
    refuse(several, "cases whose slides are of several patients in the table", "correct the table, or the manifest")
    found = [rows[0].patient for rows in own.values()]
    if divided := [name for name, count in Counter(found).items() if count > 1]:
        say(
            f"densepath: {counted(len(divided), 'patient has', 'patients have')} an answer for each slide "
            f"({first_few(divided)}); intervals count them as one"
        )
    return found
