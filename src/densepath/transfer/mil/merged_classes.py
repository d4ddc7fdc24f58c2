"""Classes of slides under other names, merged, or left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from densepath.core.errors import UserError, counted, first_few
from densepath.core.streams import say
from densepath.transfer.mil.slide_table import Row

# The three classes of the BRIGHT challenge and their subtypes (DiRL, table of data sets).
BRIGHT = {"non-cancerous": ("PB", "UDH"), "pre-cancerous": ("ADH", "FEA"), "cancerous": ("DCIS", "IC")}


def merge_classes(rows: Sequence[Row], classes: Sequence[str]) -> list[Row]:
    """Rename and merge classes.

    Args:
        rows: the rows.
        classes: "NAME=A,B" for each new class; "bright3" and "bright6" for those of the BRIGHT challenge. Rows of
            other classes are left out. Capitals do not matter.

    Raises:
        UserError: a class is in two new ones, a new one has no slide, or nothing is left.
    """
    if not classes:
        return list(rows)
    named: dict[str, Mapping[str, Sequence[str]]] = {
        "bright3": BRIGHT,
        "bright6": {own: (own,) for group in BRIGHT.values() for own in group},
    }
    merged: dict[str, str] = {}
    there = sorted({row.target for row in rows})
    spelled, known = {name.lower() for name in there}, f"the table's classes are {first_few(there, 12)}"
    for entry in classes:
        name, equals, members = entry.partition("=")
        if entry.lower() in named:
            groups = named[entry.lower()]
        elif equals:
            groups = {name.strip(): members.split(",")}
        else:
            groups = {entry: (entry,)}
        for group, owned in groups.items():
            for member in owned:
                if merged.setdefault(member.strip().lower(), group) != group:
                    raise UserError(f"--classes puts {member.strip()} into two classes; name it once")
            if entry.lower() not in named and not spelled & {member.strip().lower() for member in owned}:
                raise UserError(f"--classes names {entry}, of which there is no slide; {known}")
    kept = [replace(row, target=merged[row.target.lower()]) for row in rows if row.target.lower() in merged]
    if not kept:
        raise UserError(f"--classes {first_few(list(classes))} keeps no slide; {known}")
    if left := [name for name in there if name.lower() not in merged]:
        say(f"densepath: --classes leaves out {counted(len(rows) - len(kept), 'slide')}: {first_few(left)}")
    return kept
