"""The results so far by row, task and metric, next to the paper's numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from densepath.benchmark.config import TableConfig
from densepath.benchmark.entries import Row, Task
from densepath.benchmark.run_folder import RunFolder
from densepath.benchmark.statistics import Comparison, compare, mean_std
from densepath.benchmark.table_runs import Grid

_METRICS = {  # the others are shown without underscores
    "balanced_accuracy": "balanced accuracy",
    "macro_auc": "AUC",
    "macro_ap": "AP",
    "macro_f1": "F1",
    "r2": "R²",
    "jensen_shannon": "JS × 100",
    "bhattacharyya": "BD × 100",
    "low_share": "tokens below 0.5",
    "even_share": "tokens at 0.5 to 2",
    "high_share": "tokens above 2",
    "box_ap": "box AP",
    "box_ap50": "box AP50",
    "box_ap75": "box AP75",
    "mask_ap": "mask AP",
    "mask_ap50": "mask AP50",
    "mask_ap75": "mask AP75",
    "object_f1": "object F1",
    "object_dice": "object Dice",
    "object_hausdorff_px": "object Hausdorff (px)",
    "aji": "AJI",
    "aji_plus": "AJI+",
    "dq": "DQ",
    "sq": "SQ",
    "pq": "PQ",
    "mean_iou": "mean IoU",
    "iou_object": "IoU object",
    "iou_rest": "IoU rest",
    "dice": "Dice",
}


@dataclass(frozen=True)
class Entry:
    """One number of the table, with the scores it is computed from. All in percent.

    Args:
        row, task, metric: its position in the table.
        values: seed -> score.
        comparison: comparison with the baseline; None for the baseline itself, and if there is nothing to compare.
        paper: the paper's number.
    """

    row: Row
    task: Task
    metric: str
    values: Mapping[int, float]
    comparison: Comparison | None
    paper: float | None

    @property
    def mean_std(self) -> tuple[float, float | None] | None:
        """Mean and standard deviation over the seeds; None if there is no score yet."""
        return mean_std(list(self.values.values())) if self.values else None


@dataclass(frozen=True)
class Results:
    """All entries of a table.

    Args:
        config: the table.
        entries: (row, task, metric), all by name -> entry; rows that are left out have none.
        hardware: the machines and versions that computed the scores.
        runs, done: number of runs in the grid, and how many of them are done.
    """

    config: TableConfig
    entries: Mapping[tuple[str, str, str], Entry]
    hardware: tuple[str, ...]
    runs: int
    done: int

    def rows(self) -> Iterator[Row]:
        """The rows that are not left out."""
        present = {row for row, _, _ in self.entries}
        return (row for row in self.config.rows if row.name in present)

    def parts(self) -> dict[str, list[tuple[Task, str]]]:
        """Heading -> the columns below it, each a task and a metric."""
        parts: dict[str, list[tuple[Task, str]]] = {}
        present = {task for _, task, _ in self.entries}
        for task in self.config.tasks:
            if task.name in present:
                parts.setdefault(task.table, []).extend((task, metric) for metric in task.metrics)
        return parts

    def has_paper(self, columns: Sequence[tuple[Task, str]]) -> bool:
        """Whether the paper has a number in one of the columns, or it is shown that these are unknown."""
        return bool(self.config.missing) or any(
            self.entries[row.name, t.name, m].paper is not None for row in self.rows() for t, m in columns
        )


def collect(config: TableConfig, grid: Grid, root: Path) -> Results:
    """Collect the results of the runs that are done."""
    found = {name: RunFolder(root, run).result() for name, run in grid.runs.items()}
    notes = [RunFolder(root, run).notes() for name, run in grid.runs.items() if found[name] is not None]
    scores: dict[tuple[str, str, str], dict[int, float]] = {}
    for (row, task, seed), run in grid.places.items():
        for metric in next(t for t in config.tasks if t.name == task).metrics:
            values = scores.setdefault((row, task, metric), {})
            result = found[run.name]
            if result is not None and metric in result:
                values[seed] = result[metric]
    measured, evaluated = ({place[k] for place in grid.places} for k in (0, 1))
    for line in config.rows:
        if line.name in measured or not line.runs:  # some have only the paper's numbers, or no tiles of some tasks
            for column in (task for task in config.tasks if task.name in evaluated):
                for metric in column.metrics:
                    scores.setdefault((line.name, column.name, metric), {})
    entries = {}
    rows, tasks = {row.name: row for row in config.rows}, {task.name: task for task in config.tasks}
    for (row, task, metric), values in scores.items():
        baseline = scores.get((config.baseline, task, metric), {})
        numbers = rows[row].paper.get(task)
        entries[row, task, metric] = Entry(
            rows[row],
            tasks[task],
            metric,
            values,
            compare(values, baseline) if row != config.baseline else None,
            None if numbers is None else numbers[tasks[task].metrics.index(metric)],
        )
    machines = {f"{note['hardware']}, torch {note['torch']}, densepath {note['densepath']}" for note in notes}
    return Results(config, entries, tuple(sorted(machines)), len(grid.runs), len(notes))


def better_when_lower(metric: str) -> bool:
    """Whether a metric is a distance from the truth, and not a score."""
    return "hd95" in metric or "hausdorff" in metric


def column_name(task: Task, metric: str) -> str:
    """The heading of a column."""
    return f"{task.column} {_METRICS.get(metric, metric.replace('_', ' '))}".strip()
