"""Estimates the cost of a grid from the runs that are done, and from assumed rates until there are any."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from densepath.benchmark.config import TableConfig
from densepath.benchmark.run_folder import RunFolder
from densepath.benchmark.steps import STEPS
from densepath.benchmark.table_runs import Run
from densepath.core.errors import counted

_START_UP = 10.0  # seconds, assumed: imports and set-up before the first step


@dataclass(frozen=True)
class Cost:
    """The cost of the runs of one verb.

    Args:
        verb: the name of a step.
        runs, done: number of runs, and how many of them are done.
        hours: estimated hours of the remaining runs on one device, without the unknown ones.
        unknown: remaining runs without an estimate.
        assumed: remaining runs whose estimate comes from an assumed rate, not from measured runs.
    """

    verb: str
    runs: int
    done: int
    hours: float
    unknown: int
    assumed: int


def estimate(runs: Sequence[Run], root: Path) -> list[Cost]:
    """Estimate the cost of the runs that are not done.

    A run takes the mean time of similar runs that are done; if there are none, its images at the assumed rate plus
    the start-up time.
    """
    taken: dict[tuple[Any, ...], list[float]] = defaultdict(list)
    left = []
    for run in runs:
        folder = RunFolder(root, run)
        if folder.result() is None:
            left.append(run)
        else:
            taken[_key(run)].append(folder.notes()["seconds"])
    costs = []
    for verb in STEPS:
        mine = [run for run in left if run.verb == verb]
        measured = [run for run in mine if taken[_key(run)]]
        assumed = [run for run in mine if run not in measured and run.rate]
        seconds = sum(sum(t := taken[_key(run)]) / len(t) for run in measured)
        seconds += sum(run.images / run.rate + _START_UP for run in assumed if run.rate)
        total = sum(run.verb == verb for run in runs)
        unknown = len(mine) - len(measured) - len(assumed)
        costs.append(Cost(verb, total, total - len(mine), seconds / 3600, unknown, len(assumed)))
    return [cost for cost in costs if cost.runs]


def _key(run: Run) -> tuple[Any, ...]:
    """Runs with the same key take about the same time."""
    return (
        run.label,
        run.images,
        *(str(run.options.get(name)) for name in ("backbone", "detector", "view_size", "prompt")),
    )


def describe(costs: Sequence[Cost], table: TableConfig, devices: int) -> list[str]:
    """The estimate as lines for the user."""
    lines = [f"{cost.verb:9} {cost.runs:4} runs, {cost.done:4} done, {cost.hours:8.2f} h left" for cost in costs]
    hours = sum(cost.hours for cost in costs)
    parallel = f", {hours / devices:.2f} h on {devices} devices in parallel" if devices > 1 else ""
    lines.append(f"{'all':9} {hours:.2f} device hours left{parallel}")
    if any(cost.assumed for cost in costs):
        rates = ", ".join(f"{verb} {rate:g}" for verb, rate in table.rates.items())
        lines.append(
            f"assumed, not measured, in images per second on {table.rates_of}: {rates}; some rows and tasks have their "
            "own rates"
        )
    if unknown := sum(cost.unknown for cost in costs):
        lines.append(f"no estimate for {counted(unknown, 'run')}: the table has no rate for them")
    return lines
