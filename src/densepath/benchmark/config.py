"""What a table asks for: its rows, its tasks, its seeds, and what the paper measured. Read from YAML."""

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
from densepath.transfer.detection.detectors import BOXES_ALONE, DETECTORS

_TASKS = ("probe", "detect")
_WORDS = ("name", "verb", "data", "table", "column", "recipe", "weights", "backbone", "curve")


@dataclass(frozen=True)
class Task:
    """What every row is measured by.

    Args:
        name: of its own; the paper's numbers are given by it.
        verb: "probe" or "detect".
        data: the name of a labelled set.
        metrics: scores to show, in the order of the paper's numbers.
        options: of the verb.
        table: the heading under which its columns stand; tasks of one heading stand side by side.
        column: words before the names of its metrics.
        rate: assumed images per second, where it differs from the table's.
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
    """Weights that are compared with others.

    Args:
        name: the words in front of the row.
        recipe: pre-trains them; or else
        weights: "random", a file, a run folder or a timm name.
        options: of ``pretrain``, over those of the recipe and of the table.
        backbone: a timm name.
        needs: name of something that the user must give -> the option that takes it (``method_options.labels``).
        paper: task -> its numbers, in the order of the task's metrics, None where there is none.
        detect: options of ``detect``, over those of its tasks: ``{detector: vitdet}`` for a vision transformer.
        curve: the line that it is a point of, in the picture of scores against pre-training.
        rate: assumed images per second, where it differs from the table's.
        sam: options of ``sam``, which takes the place of ``detect`` for this row; its weights are a model of that.
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
        """All options of its pre-training; ``given`` are the values of dotted options that the user gave.

        Raises:
            UserError: one of them is not what it should be.
        """
        try:
            return pretraining_options(str(self.recipe), self.options, self.backbone, given)
        except UserError as error:
            raise UserError(f"the row {self.name!r}: {error}") from None


@dataclass(frozen=True)
class TableConfig:
    """A table.

    Args:
        name: of the configuration.
        title, source: words above the table.
        seeds: of the runs.
        baseline: the row that the others are compared with.
        rows, tasks: what is compared, and by what.
        pretrain_seed: of the pre-training of all seeds; None where each seed has a pre-training of its own.
        rates: verb -> assumed images per second.
        rates_of: the hardware that they are assumed for.
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


def config_names() -> list[str]:
    """The tables that come with the package."""
    return sorted(entry.name.removesuffix(".yaml") for entry in _folder().iterdir() if entry.name.endswith(".yaml"))


def load_table(name: str | Path) -> TableConfig:
    """A table by its name among those of the package, or by the path of a YAML file.

    Raises:
        UserError: there is none, or it is not what a table should be.
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
        raise UserError(f"the table {name} is not valid YAML ({' '.join(str(error).split())}); mend it") from None
    try:
        return _table(path.stem, content)
    except UserError as error:
        raise UserError(f"the table {name}: {error}") from None


def _table(name: str, content: Any) -> TableConfig:
    known = ("title", "source", "seeds", "pretrain_seed", "baseline", "backbone", "pretrain", "rows", "tasks", "rates")
    said = mapping(content, known, "it", needed=("rows", "tasks", "seeds", "baseline"))
    common, backbone = said.get("pretrain") or {}, said.get("backbone", "resnet18")
    _check_options("pretrain", common, "all rows (pretrain)")
    _check_words({"backbone": backbone}, "it")
    tasks = tuple(_task(entry) for entry in listed(said["tasks"], "tasks"))
    _check_names([task.name for task in tasks], "tasks")
    rows = tuple(_row(entry, tasks, common, backbone) for entry in listed(said["rows"], "rows"))
    _check_names([row.name for row in rows], "rows")
    if said["baseline"] not in [row.name for row in rows]:
        raise UserError(f"the baseline {said['baseline']!r} is no row; name one")
    rates = mapping(said.get("rates") or {}, (*VERBS, "of"), "rates")
    rates_of = str(rates.pop("of", "one GPU"))
    return TableConfig(
        name=name,
        title=str(said.get("title", name)),
        source=str(said.get("source", "")),
        seeds=checked_seeds(said["seeds"]),
        baseline=said["baseline"],
        rows=rows,
        tasks=tasks,
        pretrain_seed=None if said.get("pretrain_seed") is None else checked_seeds([said["pretrain_seed"]])[0],
        rates={verb: positive(rate, f"the rate of {verb}") for verb, rate in rates.items()},
        rates_of=rates_of,
    )


def checked_seeds(seeds: Any) -> tuple[int, ...]:
    """Seeds, each once.

    Raises:
        UserError: they are no whole numbers from 0, or one of them comes twice.
    """
    numbers = listed(seeds, "seeds")
    whole = all(isinstance(seed, int) and not isinstance(seed, bool) and seed >= 0 for seed in numbers)
    if not whole or len(set(numbers)) < len(numbers):
        raise UserError(f"seeds are {numbers}; give different whole numbers from 0")
    return tuple(numbers)


def _check_names(names: Sequence[str], what: str) -> None:
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"two {what} are called {twice[0]!r}; give each a name of its own")


def _task(entry: Any) -> Task:
    said = _fields(entry, Task, "a task", {"options": {}, "table": None})
    said["table"] = said["table"] or said["data"]
    if said["verb"] not in _TASKS:
        raise UserError(f"the task {said['name']!r} has the verb {said['verb']!r}; use one of {', '.join(_TASKS)}")
    metrics = tuple(listed(said["metrics"], f"metrics of {said['name']!r}"))
    for metric in metrics:
        if metric not in METRICS[said["verb"]]:
            raise UserError(f"{said['verb']} gives no {metric!r}; {suggest(str(metric), METRICS[said['verb']])}")
    _check_options(said["verb"], said["options"], f"the task {said['name']!r}")
    _check_masks(metrics, said["options"], f"the task {said['name']!r}")
    if any(sign in said["data"] for sign in "/="):
        raise UserError(f"the task {said['name']!r} has the data {said['data']!r}; take a name without / and =")
    return Task(**{**said, "metrics": metrics, "rate": _rate(said)})


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
    said = _fields(entry, Row, "a row", defaults)
    name = said["name"]
    if (said["recipe"] is None) == (said["weights"] is None):
        raise UserError(f"the row {name!r} must have a recipe or weights, one of the two")
    if said["weights"] is not None and (said["options"] or said["needs"]):
        raise UserError(f"the row {name!r} has weights, so there is nothing to pre-train; take its options out")
    if said.get("sam") is not None and (said["weights"] is None or any(task.verb != "detect" for task in tasks)):
        raise UserError(f"the row {name!r} has sam, which takes weights, and which tasks of detect alone can measure")
    for verb, options in (("pretrain", said["options"]), ("detect", said["detect"]), ("sam", said.get("sam"))):
        _check_options(verb, options or {}, f"the row {name!r}")
    for task in tasks:
        if task.verb == "detect" and said.get("sam") is None:
            _check_masks(task.metrics, {**task.options, **said["detect"]}, f"the row {name!r}")
    metrics = {task.name: task.metrics for task in tasks}
    for measured, numbers in mapping(said["paper"], tuple(metrics), f"the paper's numbers of {name!r}").items():
        if len(listed(numbers, f"numbers of {name!r}")) != len(metrics[measured]):
            raise UserError(
                f"{name!r} has {len(numbers)} numbers of the paper for {measured}, not {len(metrics[measured])}"
            )
        if not all(number is None or is_number(number) for number in numbers):
            raise UserError(
                f"the paper's numbers of {name!r} for {measured} are {numbers}; give numbers, or null for none"
            )
    for need, place in mapping(said["needs"], said["needs"], f"the needs of {name!r}").items():
        if not isinstance(place, str):
            raise UserError(f"{name!r} needs {need!r} for {place!r}; name the option that takes it")
    options = {} if said["recipe"] is None else merged(common, said["options"])
    row = Row(**{**said, "options": options, "rate": _rate(said)})
    if row.recipe is not None:
        row.pretraining({})  # while nothing has been looked at yet
    return row


def _check_options(verb: str, options: Any, whose: str) -> None:
    """Check what can be told of options alone.

    Raises:
        UserError: they are none of the verb's, or the grid's to decide; or a value does not fit.
    """
    mapping(options, free_options(verb), f"the options of {whose}")
    if options.get("epochs") is not None and options.get("max_steps") is not None:
        raise UserError(f"{whose} has epochs and max_steps; give one of them")
    detector = options.get("detector")
    if detector is not None and str(detector) not in DETECTORS:
        raise UserError(f"no detector is called {detector!r}; {suggest(str(detector), DETECTORS)}")
    if verb != "pretrain":  # whose recipe belongs to its values
        try:
            check_values(verb, options)
        except UserError as error:
            raise UserError(f"{whose}: {error}") from None


def _check_masks(metrics: Sequence[str], options: Mapping[str, Any], whose: str) -> None:
    masks = [metric for metric in metrics if metric.startswith("mask_")]
    if masks and options.get("detector") in BOXES_ALONE:
        raise UserError(f"{whose} has no {masks[0]}: {options['detector']} finds boxes alone; take it out")


def _fields(entry: Any, kind: type, what: str, defaults: Mapping[str, Any]) -> dict[str, Any]:
    names = [f.name for f in fields(kind)]
    needed = [f.name for f in fields(kind) if f.default is MISSING and f.name not in defaults]
    said = mapping(entry, names, what, needed)
    _check_words(said, what)
    return dict(defaults) | {name: value for name, value in said.items() if value is not None}


def _check_words(said: Mapping[str, Any], what: str) -> None:
    for name in _WORDS:
        value = said.get(name)
        if value is not None and not isinstance(value, str):
            raise UserError(f"{what} has the {name} {value!r}, which is no text; put it in quotes")


def _rate(said: Mapping[str, Any]) -> float | None:
    return None if said.get("rate") is None else positive(said["rate"], f"the rate of {said['name']!r}")


def _folder() -> Any:
    return files("densepath") / "benchmark" / "configs"
