"""The configuration of a table, read from YAML: its rows, tasks and seeds, and the paper's numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from densepath.benchmark.checks import checked_seeds, is_number, listed, mapping, positive
from densepath.benchmark.entries import Row, Task, check_names, check_words, read_row, read_task, typed_options
from densepath.benchmark.steps import STEPS
from densepath.core.errors import UserError, suggest
from densepath.core.yaml_files import load_yaml, read_text

_KNOWN = (
    *("title", "source", "seeds", "pretrain_seed", "baseline", "backbone", "pretrain", "rows", "tasks", "rates"),
    *("missing", "p_values", "contrasts"),
)


@dataclass(frozen=True)
class Contrast:
    """A comparison that the table reports besides its rows: the sum of some rows minus that of others, by seed.

    Args:
        name: what it means.
        plus, minus: names of rows.
    """

    name: str
    plus: tuple[str, ...]
    minus: tuple[str, ...]


@dataclass(frozen=True)
class TableConfig:
    """The configuration of a table.

    Args:
        name: name of the configuration.
        title, source: text above the table.
        seeds: seeds of the runs.
        baseline: the row that the others are compared with.
        rows, tasks: what is compared, and on which tasks.
        pretrain_seed: the seed of one pre-training that all seeds share; None if each seed has its own pre-training.
        rates: verb -> assumed images per second.
        rates_of: the hardware that the rates are assumed for.
        contrasts: comparisons of several rows.
        missing: what the table shows in place of a paper's number that is unknown, if there should be one.
        p_values: task -> the paper's p-value of its best row against the second best.
        published: task -> row -> the paper's number of its first metric, of all rows of the paper that the table knows:
            ``rows`` may be some of them.
    """

    name: str
    title: str
    source: str
    seeds: tuple[int, ...]
    baseline: str
    rows: tuple[Row, ...]
    tasks: tuple[Task, ...]
    pretrain_seed: int | None
    rates: Mapping[str, float]
    rates_of: str
    missing: str = ""
    p_values: Mapping[str, float] = field(default_factory=dict)
    contrasts: tuple[Contrast, ...] = ()
    published: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


def config_names() -> list[str]:
    """The names of the tables that come with the package."""
    return sorted(entry.name.removesuffix(".yaml") for entry in _folder().iterdir() if entry.name.endswith(".yaml"))


def load_table(name: str | Path) -> TableConfig:
    """Load a table of the package by its name, or a table of your own by the path of its YAML file.

    Raises:
        UserError: there is no such table, or it is invalid.
    """
    path = Path(name)
    if path.suffix not in (".yaml", ".yml") and str(name) not in config_names():
        raise UserError(f"no table is called {str(name)!r}; {suggest(str(name), config_names())}, or a YAML file")
    own = path if path.suffix in (".yaml", ".yml") else _folder() / f"{name}.yaml"
    content = load_yaml(read_text(own, f"the table {name}"), f"the table {name}")
    try:
        return _table(path.stem, content)
    except UserError as error:
        raise UserError(f"the table {name}: {error}") from None


def _table(name: str, content: Any) -> TableConfig:
    values = mapping(content, _KNOWN, "it", needed=("rows", "tasks", "seeds", "baseline"))
    backbone = values.get("backbone", "resnet18")
    common = typed_options("pretrain", values.get("pretrain") or {}, "all rows (pretrain)")
    check_words({"backbone": backbone, "missing": values.get("missing")}, "it")
    tasks = tuple(read_task(entry) for entry in listed(values["tasks"], "tasks"))
    check_names([task.name for task in tasks], "tasks")
    rows = tuple(read_row(entry, tasks, common, backbone) for entry in listed(values["rows"], "rows"))
    check_names([row.name for row in rows], "rows")
    if values["baseline"] not in [row.name for row in rows]:
        raise UserError(f"the baseline {values['baseline']!r} is not a row; name one of the rows")
    rates = mapping(values.get("rates") or {}, (*STEPS, "of"), "rates")
    rates_of = str(rates.pop("of", "one GPU"))
    return TableConfig(
        name=name,
        title=str(values.get("title", name)),
        source=str(values.get("source", "")),
        seeds=checked_seeds(values["seeds"]),
        baseline=values["baseline"],
        rows=rows,
        tasks=tasks,
        pretrain_seed=None if values.get("pretrain_seed") is None else checked_seeds([values["pretrain_seed"]])[0],
        rates={verb: positive(rate, f"the rate of {verb}") for verb, rate in rates.items()},
        rates_of=rates_of,
        contrasts=tuple(_contrast(entry, rows) for entry in values.get("contrasts") or ()),
        missing=str(values.get("missing") or ""),
        p_values=_p_values(values.get("p_values") or {}, tasks),
        published={task.name: _published(task.name, rows) for task in tasks},
    )


def _p_values(entry: Any, tasks: Sequence[Task]) -> dict[str, float]:
    values = mapping(entry, [task.name for task in tasks], "p_values")
    for name, p in values.items():
        if not is_number(p) or not 0 <= p <= 1:
            raise UserError(f"the p-value of {name!r} is {p!r}; give a number from 0 to 1")
    return {name: float(p) for name, p in values.items()}


def _published(task: str, rows: Sequence[Row]) -> dict[str, float]:
    numbers = {row.name: row.paper[task][0] for row in rows if task in row.paper}
    return {name: float(number) for name, number in numbers.items() if number is not None}


def _contrast(entry: Any, rows: Sequence[Row]) -> Contrast:
    values = mapping(entry, ("name", "plus", "minus"), "a contrast", needed=("name", "plus", "minus"))
    check_words(values, "a contrast")
    sides = [tuple(listed(values[side], f"{side} of {values['name']!r}")) for side in ("plus", "minus")]
    names = [row.name for row in rows]
    for name in (*sides[0], *sides[1]):
        if name not in names:
            raise UserError(f"the contrast {values['name']!r} has {name!r}, which is not a row; name one of the rows")
    return Contrast(values["name"], *sides)


def _folder() -> Any:
    return files("densepath") / "benchmark" / "configs"
