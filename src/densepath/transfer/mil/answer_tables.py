"""The tables of the answers for new slides: one of patients, and one of slides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from densepath.core.csv_files import table_writer
from densepath.core.errors import UserError, counted, first_few
from densepath.core.streams import say
from densepath.transfer.mil.ensemble import Ensemble
from densepath.transfer.mil.new_slides import NewSlide
from densepath.transfer.mil.results import PREDICTIONS
from densepath.transfer.mil.score_answers import SLIDES


def write_answer_tables(
    out: Path,
    models: Ensemble,
    single: bool,
    cases: Mapping[str, Sequence[NewSlide]],
    facts: Mapping[str, dict[str, Any]],
) -> dict[str, Any]:
    """A row for each patient, and for each slide with what is wrong with it.

    Args:
        out: the folder.
        models: that have answered.
        single: whether each slide is a case of its own.
        cases: the slides of each case by its name.
        facts: what is known of each case by its name: "values", its "slides" and their "problems".

    Returns:
        The numbers of "slides", "damaged" ones, "patients" with an answer, and of slides "left" to other processes.

    Raises:
        UserError: no slide can be read.
    """
    columns = models.columns()
    answered = {name: own for name, own in facts.items() if own["values"] is not None}
    problems = {slide: why for own in facts.values() for slide, why in own["problems"].items()}
    if not answered:
        slide, why = next(iter(problems.items()))
        raise UserError(f"none of {counted(sum(map(len, cases.values())), 'slide')} can be read ({slide}: {why})")
    lead = ["SLIDE"] if single else []
    rows: list[list[Any]] = [["PATIENT", *lead, "slides", "tiles", *columns]]
    for name, own in answered.items():
        counts = [len(own["slides"]), sum(slide["tiles"] for slide in own["slides"].values())]
        case = [cases[name][0].patient, *([name] if lead else [])]
        rows.append([*case, *counts, *models.row(np.array(own["values"]))])
    _write(out / PREDICTIONS, rows)
    rows = [["slide", "PATIENT", "tiles", *columns, "problem"]]
    for name, members in cases.items():
        for slide in members:
            known = facts[name]["slides"].get(slide.name)
            values = models.row(np.array(known["values"])) if known else [""] * len(columns)
            values = [str(known["tiles"] if known else 0), *values]
            rows.append([slide.name, slide.patient, *values, facts[name]["problems"].get(slide.name, "")])
    _write(out / SLIDES, rows)
    count = sum(map(len, cases.values()))
    also = f"; {counted(len(problems), 'slide')} passed over: {first_few(list(problems))}" if problems else ""
    say(f"densepath: answers for {counted(count - len(problems), 'slide')}, {counted(len(answered), 'case')}{also}")
    return {"slides": count, "damaged": len(problems), "patients": len(answered), "left": 0}


def _write(path: Path, rows: Sequence[Sequence[Any]]) -> None:
    with table_writer(path) as writer:
        writer.writerows(rows)
