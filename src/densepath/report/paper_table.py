"""A benchmark's table: its numbers beside those of the paper."""

from __future__ import annotations

import json
from pathlib import Path

from densepath.core.errors import UserError, one_line
from densepath.report.blocks import Block, Facts, Note, Section, Table
from densepath.report.common import figure
from densepath.report.paths import own_file
from densepath.report.runs import RECORD

PICTURES = {  # in the folder -> captions
    "curves.png": "Scores against the length of pre-training",
    "sweeps.png": "Scores against the number in which rows or tasks differ",
}


def table_sections(folder: Path, most: int) -> tuple[str, list[Section]]:
    """The title and the sections of a table's folder.

    Raises:
        UserError: it is damaged.
    """
    path = own_file(folder, RECORD)
    try:
        record = json.loads(path.read_text())
        baseline, parts = str(record["baseline"]), record["parts"]
        sections = [
            Section(str(part["heading"]), [_table(part["columns"], part["rows"], part["published"], baseline)])
            for part in parts
        ]
        notes: list[Block] = [Note(str(note)) for note in record["notes"]]
        title, source = str(record["title"]), str(record["source"])
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({one_line(str(error))}); give the benchmark's command again") from None
    drawn = [each for name, caption in PICTURES.items() for each in figure(folder, name, caption)] if most else []
    head: list[Block] = [Facts({"source": source, "baseline": baseline})]
    return title, [Section("Table", [*head, *drawn], parts=sections), Section("Notes", notes)]


def _table(columns: list[str], rows: list[list[str]], published: bool, baseline: str) -> Table:
    each = ["here", f"vs. {baseline}", *["paper"] * published]
    marked = frozenset(number for number, row in enumerate(rows) if row[0] == baseline)
    groups = [("", 2), *((name, len(each)) for name in columns)]
    texts = [list(map(str, row)) for row in rows]
    return Table(["weights", "seeds", *each * len(columns)], texts, groups, marked)
