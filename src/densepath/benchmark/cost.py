"""What a grid will cost: from what its runs have taken so far, and before that from assumed rates."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from densepath.benchmark.config import TableConfig
from densepath.benchmark.grid import Cell
from densepath.benchmark.run_folder import CellFolder
from densepath.benchmark.verb_options import VERBS

_START_UP = 10.0  # seconds, assumed: imports and what a run does before its first step


@dataclass(frozen=True)
class Cost:
    """The runs of one verb.

    Args:
        verb: what they do.
        runs, done: how many there are, and are done.
        hours: what the others take on one device, as far as it is known.
        unknown: how many of the others nothing is known of.
        assumed: how many of the others are reckoned by an assumed rate, not by runs that were measured.
    """

    verb: str
    runs: int
    done: int
    hours: float
    unknown: int
    assumed: int


def estimate(cells: Sequence[Cell], root: Path) -> list[Cost]:
    """What the cells will take that are not done.

    A cell takes what like ones have taken on the average; where none is done, its images at the rate that is assumed,
    and some seconds.
    """
    taken: dict[tuple[Any, ...], list[float]] = defaultdict(list)
    left = []
    for cell in cells:
        folder = CellFolder(root, cell)
        if folder.result() is None:
            left.append(cell)
        else:
            taken[_kind(cell)].append(folder.notes()["seconds"])
    costs = []
    for verb in VERBS:
        mine = [cell for cell in left if cell.verb == verb]
        measured = [cell for cell in mine if taken[_kind(cell)]]
        assumed = [cell for cell in mine if cell not in measured and cell.rate]
        seconds = sum(sum(t := taken[_kind(cell)]) / len(t) for cell in measured)
        seconds += sum(cell.images / cell.rate + _START_UP for cell in assumed if cell.rate)
        runs = sum(cell.verb == verb for cell in cells)
        unknown = len(mine) - len(measured) - len(assumed)
        costs.append(Cost(verb, runs, runs - len(mine), seconds / 3600, unknown, len(assumed)))
    return [cost for cost in costs if cost.runs]


def _kind(cell: Cell) -> tuple[Any, ...]:
    """What runs must have in common to take about as long."""
    return (
        cell.label,
        cell.images,
        *(cell.options.get(name) for name in ("backbone", "detector", "view_size", "prompt")),
    )


def describe(costs: Sequence[Cost], table: TableConfig, devices: int) -> list[str]:
    """The estimate in lines for the user."""
    lines = [f"{cost.verb:9} {cost.runs:4} runs, {cost.done:4} done, {cost.hours:8.2f} h left" for cost in costs]
    hours = sum(cost.hours for cost in costs)
    side = f", {hours / devices:.2f} h on {devices} side by side" if devices > 1 else ""
    lines.append(f"{'all':9} {hours:.2f} device hours left{side}")
    if any(cost.assumed for cost in costs):
        rates = ", ".join(f"{verb} {rate:g}" for verb, rate in table.rates.items())
        lines.append(f"assumed, not measured, in images per second on {table.rates_of}: {rates}; some tasks differ")
    if unknown := sum(cost.unknown for cost in costs):
        lines.append(f"nothing is known of {unknown} runs: the table assumes no rate for them")
    return lines
