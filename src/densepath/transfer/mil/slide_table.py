"""Tables of slides: which patient a slide is of, and what is known of it. CLAM, STAMP, TCGA, BRIGHT, or any CSV."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from densepath.annotations.patients import check_spelling
from densepath.core.columns import PATIENT_COLUMNS, SLIDE_COLUMNS, SPLIT_OF, plain_head
from densepath.core.csv_files import open_lines, refuse_longer, refuse_other_encoding
from densepath.core.errors import UserError, counted, first_few, refuse
from densepath.core.spelling import groups_of_spellings, is_missing
from densepath.core.streams import say, say_left_out

FOLDERS = "folders"
TCGA = "tcga"
_TARGET_COLUMNS = ("label", "class", "target")
_BARCODE = re.compile(r"TCGA-([A-Z0-9]{2})-[A-Z0-9]{4}")  # of a patient; the first part is the site


@dataclass(frozen=True)
class Columns:
    """The columns of a table.

    Args:
        target: what is predicted; default: label or class.
        patient: default: patient, case or subject; without one the barcodes of TCGA, or each slide is a patient.
        slide: default: slide_id, FILENAME, slide, file; without one TCGA's slides are found by their patients.
        site: sites whose patients stay together, or "tcga" for those in the barcodes.
        event: of survival: whether the event was observed.
        split: the part of the official split that a slide is in.
    """

    target: str | None = None
    patient: str | None = None
    slide: str | None = None
    site: str | None = None
    event: str | None = None
    split: str | None = None


@dataclass(frozen=True)
class Row:
    """A slide in a table.

    Args:
        slide: name or path, as the table has it.
        patient: the patient's name.
        target: text of the target.
        site, event, split: text of these columns; "" without them.
        place: where the row is, for messages.
    """

    slide: str
    patient: str
    target: str
    site: str = ""
    event: str = ""
    split: str = ""
    place: str = ""


@dataclass(frozen=True)
class SlideTable:
    """The slides of a table.

    Args:
        rows: one for each slide.
        target: name of the target's column.
        by_patient: where the patients come from; "" if unknown: then each slide is of a patient of its own.
        delimiter: of the table.
    """

    rows: list[Row]
    target: str
    by_patient: str
    delimiter: str = ","


def read_slide_table(
    table: str | Path,
    columns: Columns,
    slide_table: str | Path | None = None,
    known: Sequence[str] = (),
    resumed: bool = False,
) -> SlideTable:
    """Read a table with a row for each slide, or for each patient.

    Args:
        table: a CSV or TSV; "folders" takes the innermost folder of a file of features as its class (BRIGHT and BRACS
            as published, with ``Type_`` before it or not) and its topmost one, if that is train, val or test, as split.
        columns: the columns to use.
        slide_table: for a table of patients, another one with their slides (STAMP: PATIENT, FILENAME).
        known: the names of the slides that have features, for "folders" and for patients of TCGA.
        resumed: whether to warn of one patient under two names, as a resumed run keeps its patients.

    Raises:
        UserError: the table cannot be read, a column or a value is missing, a slide or a patient has two rows, or a
            patient has two names.
    """
    if str(table) == FOLDERS:
        return _of_folders(known)
    heads, lines, delimiter = _read(table)
    target = _column(heads, columns.target, _TARGET_COLUMNS, table, "target")
    assert target is not None
    found = {
        name: _column(heads, getattr(columns, name), (), table, name)
        for name in ("site", "event", "split")
        if not (name == "site" and columns.site == TCGA)
    }
    patient = _column(heads, columns.patient, PATIENT_COLUMNS, table, "patient", needed=False)
    slide = None if slide_table else _column(heads, columns.slide, SLIDE_COLUMNS, table, "slide", needed=False)
    rows = [
        Row(
            line.get(slide, "") if slide else "",
            _patient(line.get(patient, "")) if patient else "",
            line.get(target, ""),
            **{name: line.get(column, "") if column else "" for name, column in found.items()},
            place=f"line {number} of {table}",
        )
        for number, line in lines
    ]
    for row in rows:
        texts = row.slide, row.patient, row.target, row.site, row.event, row.split
        refuse_other_encoding(texts, row.place)
    rows, source = _with_slides(rows, slide or columns.slide, patient, slide_table, table, known, resumed)
    absent = [f"{row.place} ({row.slide})" for row in rows if is_missing(row.target)]
    refuse(absent, f"{counted(len(absent), 'row has', 'rows have')} no {target}", "fill them in, or remove these rows")
    lonely = [row.place for row in rows if is_missing(row.patient) or not row.slide]
    refuse(lonely, "rows without a patient or a slide", "fill them in, or remove these rows")
    if columns.site == TCGA:
        rows = [replace(row, site=_part_of_barcode(row.patient, 1)) for row in rows]
        refuse([row.patient for row in rows if not row.site], "not barcodes of TCGA", "name the column of the sites")
    if source:
        check_spelling((row.patient for row in rows), warn=resumed)
    twice = _repeated([row.slide for row in rows])
    refuse(twice, f"slides with two rows in {slide_table or table}", "keep one row for each slide")
    return SlideTable(rows, target, source, delimiter)


def has_column(table: str | Path, name: str) -> bool:
    """Whether a table has a column, whatever its capitals. Raises UserError if it cannot be read."""
    return str(table) != FOLDERS and plain_head(name) in _read(table)[0]


def has_slides(table: str | Path, columns: Columns) -> bool:
    """Whether a table has a column of slides, or is "folders".

    Raises:
        UserError: it cannot be read, or lacks the named column.
    """
    if str(table) == FOLDERS:
        return True
    heads, _, _ = _read(table)
    return _column(heads, columns.slide, SLIDE_COLUMNS, table, "slide", needed=False) is not None


def patient_of_tcga(name: str) -> str:
    """The patient in a barcode of TCGA (TCGA-3X-AAVA-01Z-00-DX1 -> TCGA-3X-AAVA); "" if it is none."""
    return _part_of_barcode(name, 0)


def _patient(name: str) -> str:
    """A patient's name; of barcodes of samples (TCGA-3X-AAVA-01A) the patient in them."""
    return patient_of_tcga(name) or name


def _part_of_barcode(name: str, group: int) -> str:
    match = _BARCODE.match(os.path.basename(name).upper())
    return match[group] if match else ""


def _of_folders(known: Sequence[str]) -> SlideTable:
    rows = []
    for name in known:
        parts = name.split("/")[:-1]
        split = parts[0].lower() if parts and parts[0].lower() in SPLIT_OF else ""
        if len(parts) < (2 if split else 1):
            raise UserError(f"the features of {name} are in no folder of a class; give a table")
        patient = patient_of_tcga(name) or name
        rows.append(Row(name, patient, parts[-1].removeprefix("Type_"), split=split, place=name))
    from_barcodes = all(patient_of_tcga(row.slide) for row in rows)
    return SlideTable(rows, "label", "barcodes of TCGA" if from_barcodes else "")


def _with_slides(
    rows: list[Row],
    slide: str | None,
    patient: str | None,
    slide_table: str | Path | None,
    table: str | Path,
    known: Sequence[str],
    resumed: bool,
) -> tuple[list[Row], str]:
    """The rows with a slide and a patient each, and where the patients come from."""
    if slide_table is None and slide is not None:
        if patient is not None:
            return rows, f"{patient} in {table}"
        if rows and all(patient_of_tcga(row.slide) for row in rows):
            return [replace(row, patient=patient_of_tcga(row.slide)) for row in rows], "barcodes of TCGA"
        return [replace(row, patient=row.slide) for row in rows], ""
    if patient is None:
        raise UserError(f"{table} names neither slides nor patients; name their columns with --slide and --patient")
    patients = [row.patient for row in rows if not is_missing(row.patient)]
    refuse(_repeated(patients), f"patients with two rows in {table}", "keep one row for each")
    of_patient: dict[str, list[str]] = {}
    if slide_table is not None:
        heads, lines, _ = _read(slide_table)
        owner = _column(heads, None, (patient.lower(), *PATIENT_COLUMNS), slide_table, "patient")
        name = _column(heads, slide, SLIDE_COLUMNS, slide_table, "slide")
        for number, line in lines:
            texts = _patient(line.get(owner or "", "")), line.get(name or "", "")
            refuse_other_encoding(texts, f"line {number} of {slide_table}")
            if not is_missing(texts[0]):
                of_patient.setdefault(texts[0], []).append(texts[1])
    else:
        for each in known:
            if barcode := patient_of_tcga(each):
                of_patient.setdefault(barcode, []).append(each)
    alike = [group for group in groups_of_spellings({*patients, *of_patient}) if not {*group}.isdisjoint(patients)]
    check_spelling(chain(*alike), warn=resumed)
    found = [replace(row, slide=each) for row in rows for each in of_patient.get(row.patient, [])]
    where = slide_table or "the names of the features"
    if not found:
        raise UserError(f"no patient of {table} has a slide in {where}; give a table with a column of slides")
    say_left_out([row.place for row in rows if is_missing(row.patient)], "row", "without a patient")
    if without := [patient for patient in patients if patient not in of_patient]:
        of = counted(len(without), "patient")
        say(f"densepath: left out: {of} of {table} without a slide in {where}: {first_few(without)}")
    return found, f"{patient} in {table}"


def _column(
    heads: Mapping[str, str],
    asked: str | None,
    usual: Sequence[str],
    table: str | Path,
    what: str,
    needed: bool = True,
) -> str | None:
    """The head of a column as its table spells it."""
    if asked is not None:
        if (found := heads.get(plain_head(asked))) is None:
            refuse_other_encoding(heads, f"the header of {table}")
            raise UserError(f"{table} has no column {asked}; its columns are {first_few(list(heads.values()), 12)}")
        return found
    found = next((heads[plain_head(name)] for name in usual if plain_head(name) in heads), None)
    if found is None and usual and needed:
        raise UserError(
            f"{table} has no usual column of the {what}; name it with --{what} (its columns are "
            f"{first_few(list(heads.values()), 12)})"
        )
    return found


def _read(table: str | Path) -> tuple[dict[str, str], list[tuple[int, dict[str, str]]], str]:
    """The heads by their plain names, the lines by their numbers, and the delimiter."""
    try:
        with open_lines(table) as reader:
            heads = [head.strip() for head in next(reader, [])]
            lines = []
            for fields in reader:
                if any(field.strip() for field in fields):
                    refuse_longer(fields, len(heads), table, reader.line_num)
                    values = [field.strip() for field in fields]
                    lines.append((reader.line_num, dict(zip(heads, values, strict=False))))
    except (OSError, ValueError, csv.Error) as error:
        why = getattr(error, "strerror", None) or error
        remedy = "correct it" if isinstance(error, csv.Error | UnicodeError) else "check the path"
        raise UserError(f"the table {table} cannot be read ({why}); {remedy}") from error
    if not lines:
        raise UserError(f"the table {table} has no rows; give a header and a row for each slide")
    twice = _repeated([plain_head(head) for head in heads])
    refuse(twice, f"{table} has two columns", "rename one")
    return {plain_head(head): head for head in heads}, lines, reader.delimiter


def _repeated(names: Sequence[str]) -> list[str]:
    seen: set[str] = set()
    return list(dict.fromkeys(name for name in names if name in seen or seen.add(name)))  # type: ignore[func-returns-value]
