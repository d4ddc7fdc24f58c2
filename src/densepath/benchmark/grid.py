"""The grid of a table's runs: which runs its rows, tasks and seeds need, and which of them are shared."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from densepath.benchmark.config import TableConfig
from densepath.benchmark.identity import Digests, ImageSet
from densepath.benchmark.labelled_sets import LabelledSet
from densepath.benchmark.row_runs import RowRuns
from densepath.benchmark.table_runs import Grid
from densepath.core.errors import UserError


def make_grid(
    table: TableConfig,
    labelled: Mapping[str, LabelledSet],
    tiles: ImageSet | Mapping[str, ImageSet] | None,
    given: Mapping[str, str],
    cache: Path,
    of_tasks: Mapping[str, LabelledSet] | None = None,
    dry_run: bool = False,
) -> Grid:
    """Make the grid of all runs of a table.

    Args:
        table: the configuration.
        labelled: name -> labelled set; tasks on other sets are left out.
        tiles: the images for pre-training, of all tasks or by the name of the task's tiles; rows whose tiles are
            missing are left out.
        given: the user's values for the needs of rows; rows with other needs are left out. ``TILES.NAME`` is the value
            of NAME for some tiles.
        cache: the folder in which digests of files are kept.
        of_tasks: name of a task -> its set, where tasks read the same data in different ways.
        dry_run: leave out rows whose weights do not exist (yet), instead of refusing the table.

    Raises:
        UserError: an option of a row is invalid, its weights do not exist, or there is nothing to run.
    """
    grid = Grid()
    tasks = [task for task in table.tasks if task.data in labelled]
    for data in dict.fromkeys(task.data for task in table.tasks if task.data not in labelled):
        grid.skipped.append(f"no {data}: give it with --data {data}=FOLDER")
    rows = [row for row in table.rows if row.runs]
    sets = {task.name: labelled[task.data] for task in tasks} | dict(of_tasks or {})
    digests = Digests(cache)
    makers = {
        (row.name, task.name): RowRuns(table, row, task, sets[task.name], tiles, given, digests)
        for row in rows
        for task in tasks
    }
    missing = list(dict.fromkeys(maker.no_weights for maker in makers.values() if maker.no_weights))
    if missing and not dry_run:
        raise UserError("; ".join(missing))
    grid.skipped += [*dict.fromkeys(maker.lacking for maker in makers.values() if maker.lacking), *missing]
    makers = {place: maker for place, maker in makers.items() if not (maker.lacking or maker.no_weights)}
    if not makers:
        raise UserError(f"there is nothing to run in {table.name}; {'; '.join(grid.skipped)}")
    for seed in sorted({*table.seeds, *(s for task in tasks for s in task.seeds or ())}, key=_order(table)):
        for (row_name, task_name), maker in makers.items():
            if seed not in (maker.task.seeds or table.seeds):
                continue
            grid.places[row_name, task_name, seed] = run = maker.add(seed, grid)
            while run.parent is not None:
                run = run.parent
            if run.verb == "pretrain":
                grid.budgets[row_name, task_name] = run.images
    return grid


def _order(table: TableConfig) -> Any:
    known = {seed: place for place, seed in enumerate(table.seeds)}
    return lambda seed: (known.get(seed, len(known)), seed)
