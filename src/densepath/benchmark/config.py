"""The configuration of a table, read from YAML: its rows, tasks and seeds, and the paper's numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import yaml

from densepath.benchmark.checks import is_number, listed, mapping, positive
from densepath.benchmark.verb_options import METRICS, VERBS, check_values, free_options, pretraining_options
from densepath.core.errors import UserError, suggest
from densepath.training.resolve import merged
from densepath.transfer.detection.detectors import BOXES_ONLY, DETECTORS
from densepath.transfer.detection.object_metrics import OBJECT_METRICS

_TASKS = ("probe", "detect")
_WORDS = ("name", "verb", "data", "table", "column", "recipe", "weights", "backbone", "curve")


@dataclass(frozen=True)
class Task:
    """A downstream task that every row is evaluated on.

    Args:
        name: unique name; the paper's numbers refer to it.
        verb: "probe" or "detect".
        data: name of a labelled data set.
        metrics: scores to report, in the order of the paper's numbers.
        options: options of the verb.
        table: heading of the part of the table that shows it; tasks with the same heading stand side by side.
        column: prefix of its column headings.
        rate: assumed images per second, if it differs from the table's.
    """

    name: str
    verb: Literal["probe", "detect"]
    data: str
    metrics: tuple[str, ...]
    options: Mapping[str, Any]
    table: str
    column: str = ""
    rate: float | None = None


@dataclass(frozen=True)
class Row:
    """A row of the table: weights that are compared with others.

    Args:
        name: the label of the row.
        recipe: the recipe that pre-trains the weights; None if ``weights`` is given.
        weights: "random", a file, a run folder or a timm name; None if ``recipe`` is given.
        options: options of ``pretrain``; they override those of the recipe and of the table.
        backbone: a timm name.
        needs: name of an input that the user must give -> the option that takes it (``labels``).
        paper: task -> the paper's numbers in the order of the task's metrics, None for a missing number.
        detect: options of ``detect``, which override those of the tasks: ``{detector: vitdet}`` for a transformer.
        curve: the line in the plot of scores against pre-training length that the row is a point of.
        rate: assumed images per second, if it differs from the table's.
        sam: options of ``sam``, which replaces ``detect`` for this row; its weights are a Segment Anything model.
    """

    name: str
    recipe: str | None
    weights: str | None
    options: Mapping[str, Any]
    backbone: str
    needs: Mapping[str, str]
    paper: Mapping[str, Sequence[float | None]]
    detect: Mapping[str, Any]
    curve: str | None = None
    rate: float | None = None
    sam: Mapping[str, Any] | None = None

    def pretraining(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """All options of its pre-training; ``given``: dotted option -> value given by the user.

        Raises:
            UserError: an option is invalid.
        """
        try:
            return pretraining_options(str(self.recipe), self.options, self.backbone, given)
        except UserError as error:
            raise UserError(f"the row {self.name!r}: {error}") from None


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
    contrasts: tuple[Contrast, ...] = ()


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
    try:
        text = path.read_text() if path.suffix in (".yaml", ".yml") else (_folder() / f"{name}.yaml").read_text()
        content = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the table {name} cannot be read ({type(error).__name__}); check its path") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"the table {name} is not valid YAML ({' '.join(str(error).split())}); fix it") from None
    try:
        return _table(path.stem, content)
    except UserError as error:
        raise UserError(f"the table {name}: {error}") from None


def _table(name: str, content: Any) -> TableConfig:
    known = ("title", "source", "seeds", "pretrain_seed", "baseline", "backbone", "pretrain", "rows", "tasks", "rates")
    known = (*known, "contrasts")
    values = mapping(content, known, "it", needed=("rows", "tasks", "seeds", "baseline"))
    common, backbone = values.get("pretrain") or {}, values.get("backbone", "resnet18")
    _check_options("pretrain", common, "all rows (pretrain)")
    _check_words({"backbone": backbone}, "it")
    tasks = tuple(_task(entry) for entry in listed(values["tasks"], "tasks"))
    _check_names([task.name for task in tasks], "tasks")
    rows = tuple(_row(entry, tasks, common, backbone) for entry in listed(values["rows"], "rows"))
    _check_names([row.name for row in rows], "rows")
    if values["baseline"] not in [row.name for row in rows]:
        raise UserError(f"the baseline {values['baseline']!r} is not a row; name one of the rows")
    rates = mapping(values.get("rates") or {}, (*VERBS, "of"), "rates")
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
    )


def _contrast(entry: Any, rows: Sequence[Row]) -> Contrast:
    values = mapping(entry, ("name", "plus", "minus"), "a contrast", needed=("name", "plus", "minus"))
    _check_words(values, "a contrast")
    sides = [tuple(listed(values[side], f"{side} of {values['name']!r}")) for side in ("plus", "minus")]
    names = [row.name for row in rows]
    for name in (*sides[0], *sides[1]):
        if name not in names:
            raise UserError(f"the contrast {values['name']!r} has {name!r}, which is not a row; name one of the rows")
    return Contrast(values["name"], *sides)


def checked_seeds(seeds: Any) -> tuple[int, ...]:
    """Check a list of seeds.

    Raises:
        UserError: they are not whole numbers from 0, or a seed occurs twice.
    """
    numbers = listed(seeds, "seeds")
    whole = all(isinstance(seed, int) and not isinstance(seed, bool) and seed >= 0 for seed in numbers)
    if not whole or len(set(numbers)) < len(numbers):
        raise UserError(f"seeds are {numbers}; give distinct whole numbers from 0")
    return tuple(numbers)


def _check_names(names: Sequence[str], what: str) -> None:
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"two {what} are called {twice[0]!r}; give each a unique name")


def _task(entry: Any) -> Task:
    values = _fields(entry, Task, "a task", {"options": {}, "table": None})
    values["table"] = values["table"] or values["data"]
    if values["verb"] not in _TASKS:
        raise UserError(f"the task {values['name']!r} has the verb {values['verb']!r}; use one of {', '.join(_TASKS)}")
    metrics = tuple(listed(values["metrics"], f"metrics of {values['name']!r}"))
    for metric in metrics:
        if metric not in METRICS[values["verb"]]:
            raise UserError(f"{values['verb']} gives no {metric!r}; {suggest(str(metric), METRICS[values['verb']])}")
    _check_options(values["verb"], values["options"], f"the task {values['name']!r}")
    _check_masks(metrics, values["options"], f"the task {values['name']!r}")
    if any(sign in values["data"] for sign in "/="):
        raise UserError(f"the task {values['name']!r} has the data {values['data']!r}; use a name without / and =")
    return Task(**{**values, "metrics": metrics, "rate": _rate(values)})


def _row(entry: Any, tasks: Sequence[Task], common: Mapping[str, Any], backbone: str) -> Row:
    defaults: dict[str, Any] = {
        "recipe": None,
        "weights": None,
        "options": {},
        "backbone": backbone,
        "needs": {},
        "paper": {},
        "detect": {},
    }
    values = _fields(entry, Row, "a row", defaults)
    name = values["name"]
    if (values["recipe"] is None) == (values["weights"] is None):
        raise UserError(f"the row {name!r} must have either a recipe or weights")
    if values["weights"] is not None and (values["options"] or values["needs"]):
        raise UserError(f"the row {name!r} has weights, so there is nothing to pre-train; remove its options and needs")
    if values.get("sam") is not None and (values["weights"] is None or any(task.verb != "detect" for task in tasks)):
        raise UserError(f"the row {name!r} has sam, which needs weights and works with detect tasks only; remove sam")
    for verb, options in (("pretrain", values["options"]), ("detect", values["detect"]), ("sam", values.get("sam"))):
        _check_options(verb, options or {}, f"the row {name!r}")
    for task in tasks:
        if task.verb == "detect" and values.get("sam") is None:
            _check_masks(task.metrics, {**task.options, **values["detect"]}, f"the row {name!r}")
    metrics = {task.name: task.metrics for task in tasks}
    for measured, numbers in mapping(values["paper"], tuple(metrics), f"the paper's numbers of {name!r}").items():
        if len(listed(numbers, f"numbers of {name!r}")) != len(metrics[measured]):
            raise UserError(f"{name!r} has {len(numbers)} paper numbers for {measured}; give {len(metrics[measured])}")
        if not all(number is None or is_number(number) for number in numbers):
            raise UserError(
                f"the paper's numbers of {name!r} for {measured} are {numbers}; give numbers, or null for a missing one"
            )
    for need, place in mapping(values["needs"], values["needs"], f"the needs of {name!r}").items():
        if not isinstance(place, str):
            raise UserError(f"{name!r} needs {need!r} for {place!r}; name the option that takes it")
    options = {} if values["recipe"] is None else merged(common, values["options"])
    row = Row(**{**values, "options": options, "rate": _rate(values)})
    if row.recipe is not None:
        row.pretraining({})  # checks the options before any data is read
    return row


def _check_options(verb: str, options: Any, whose: str) -> None:
    """Check options without running the verb."""
    mapping(options, free_options(verb), f"the options of {whose}")
    if options.get("epochs") is not None and options.get("max_steps") is not None:
        raise UserError(f"{whose} has epochs and max_steps; give one of them")
    detector = options.get("detector")
    if detector is not None and str(detector) not in DETECTORS:
        raise UserError(f"no detector is called {detector!r}; {suggest(str(detector), DETECTORS)}")
    if verb != "pretrain":  # its values are checked together with those of the recipe
        try:
            check_values(verb, options)
        except UserError as error:
            raise UserError(f"{whose}: {error}") from None


def _check_masks(metrics: Sequence[str], options: Mapping[str, Any], whose: str) -> None:
    masks = [metric for metric in metrics if metric.startswith("mask_") or metric in OBJECT_METRICS]
    if masks and options.get("detector") in BOXES_ONLY:
        raise UserError(f"{whose} has no {masks[0]}: {options['detector']} finds boxes only; remove it")


def _fields(entry: Any, kind: type, what: str, defaults: Mapping[str, Any]) -> dict[str, Any]:
    names = [f.name for f in fields(kind)]
    needed = [f.name for f in fields(kind) if f.default is MISSING and f.name not in defaults]
    values = mapping(entry, names, what, needed)
    _check_words(values, what)
    return dict(defaults) | {name: value for name, value in values.items() if value is not None}


def _check_words(values: Mapping[str, Any], what: str) -> None:
    for name in _WORDS:
        value = values.get(name)
        if value is not None and not isinstance(value, str):
            raise UserError(f"{what} has the {name} {value!r}, which is not text; put it in quotes")


def _rate(values: Mapping[str, Any]) -> float | None:
    return None if values.get("rate") is None else positive(values["rate"], f"the rate of {values['name']!r}")


def _folder() -> Any:
    return files("densepath") / "benchmark" / "configs"
