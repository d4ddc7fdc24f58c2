"""What a table asks for: its rows, its tasks, its seeds, and what the paper measured. Read from YAML."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import yaml

from densepath.core.errors import UserError
from densepath.training.pretrain import pretrain
from densepath.transfer.detection import DETECTORS, detect
from densepath.transfer.probe import probe

Verb = Literal["pretrain", "probe", "detect"]

VERBS: dict[str, Callable[..., Any]] = {"pretrain": pretrain, "probe": probe, "detect": detect}
METRICS = {
    "probe": ("mean_iou", "iou_object", "iou_rest", "dice", "accuracy"),
    "detect": ("box_ap", "box_ap50", "box_ap75", "mask_ap", "mask_ap50", "mask_ap75"),
}
# What the grid itself decides for every run.
_OF_THE_GRID = (
    *("data", "out", "seed", "weights", "backbone", "devices", "resume", "evaluate", "workers"),
    *("probe", "draw"),  # functions
)
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
        curve: the line that it is a point of, in the picture of scores against pre-training.
        rate: assumed images per second, where it differs from the table's.
    """

    name: str
    recipe: str | None
    weights: str | None
    options: Mapping[str, Any]
    backbone: str
    needs: Mapping[str, str]
    paper: Mapping[str, Sequence[float | None]]
    curve: str | None = None
    rate: float | None = None


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
        raise UserError(f"no table is called {str(name)!r}; {_suggest(str(name), config_names())}, or a YAML file")
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
    said = _mapping(content, known, "it", needed=("rows", "tasks", "seeds", "baseline"))
    common, backbone = said.get("pretrain") or {}, said.get("backbone", "resnet18")
    _check_options("pretrain", common, "all rows (pretrain)")
    _check_words({"backbone": backbone}, "it")
    tasks = tuple(_task(entry) for entry in _list(said["tasks"], "tasks"))
    _check_names([task.name for task in tasks], "tasks")
    rows = tuple(_row(entry, tasks, common, backbone) for entry in _list(said["rows"], "rows"))
    _check_names([row.name for row in rows], "rows")
    if said["baseline"] not in [row.name for row in rows]:
        raise UserError(f"the baseline {said['baseline']!r} is no row; name one")
    rates = _mapping(said.get("rates") or {}, (*VERBS, "of"), "rates")
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
        rates={verb: _positive(rate, f"the rate of {verb}") for verb, rate in rates.items()},
        rates_of=rates_of,
    )


def checked_seeds(seeds: Any) -> tuple[int, ...]:
    """Seeds, each once.

    Raises:
        UserError: they are no whole numbers from 0, or one of them comes twice.
    """
    numbers = _list(seeds, "seeds")
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
    if said["verb"] not in METRICS:
        raise UserError(f"the task {said['name']!r} has the verb {said['verb']!r}; use one of {', '.join(METRICS)}")
    metrics = tuple(_list(said["metrics"], f"metrics of {said['name']!r}"))
    for metric in metrics:
        if metric not in METRICS[said["verb"]]:
            raise UserError(f"{said['verb']} gives no {metric!r}; {_suggest(str(metric), METRICS[said['verb']])}")
    _check_options(said["verb"], said["options"], f"the task {said['name']!r}")
    detector = said["options"].get("detector")
    if detector is not None and str(detector) not in DETECTORS:
        raise UserError(f"no detector is called {detector!r}; {_suggest(str(detector), DETECTORS)}")
    return Task(**{**said, "metrics": metrics, "rate": _rate(said)})


def _row(entry: Any, tasks: Sequence[Task], common: Mapping[str, Any], backbone: str) -> Row:
    defaults: dict[str, Any] = {
        "recipe": None,
        "weights": None,
        "options": {},
        "backbone": backbone,
        "needs": {},
        "paper": {},
    }
    said = _fields(entry, Row, "a row", defaults)
    name = said["name"]
    if (said["recipe"] is None) == (said["weights"] is None):
        raise UserError(f"the row {name!r} must have a recipe or weights, one of the two")
    if said["weights"] is not None and (said["options"] or said["needs"]):
        raise UserError(f"the row {name!r} has weights, so there is nothing to pre-train; take its options out")
    _check_options("pretrain", said["options"], f"the row {name!r}")
    metrics = {task.name: task.metrics for task in tasks}
    for task, numbers in _mapping(said["paper"], tuple(metrics), f"the paper's numbers of {name!r}").items():
        if len(_list(numbers, f"numbers of {name!r}")) != len(metrics[task]):
            raise UserError(f"{name!r} has {len(numbers)} numbers of the paper for {task}, not {len(metrics[task])}")
        if not all(number is None or _is_number(number) for number in numbers):
            raise UserError(f"the paper's numbers of {name!r} for {task} are {numbers}; give numbers, or null for none")
    for need, place in _mapping(said["needs"], said["needs"], f"the needs of {name!r}").items():
        if not isinstance(place, str):
            raise UserError(f"{name!r} needs {need!r} for {place!r}; name the option that takes it")
    options = {} if said["recipe"] is None else merged(common, said["options"])
    return Row(**{**said, "options": options, "rate": _rate(said)})


def merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Options over others, parts such as ``method_options`` option by option; the length of a run is said once."""
    result = dict(under)
    for one, other in (("epochs", "max_steps"), ("max_steps", "epochs")):
        if over.get(one) is not None:
            result.pop(other, None)
    for name, value in over.items():
        both = isinstance(value, Mapping) and isinstance(result.get(name), Mapping)
        result[name] = merged(result[name], value) if both else value
    return result


def _check_options(verb: str, options: Any, whose: str) -> None:
    known = [name for name in inspect.signature(VERBS[verb]).parameters if name not in _OF_THE_GRID]
    _mapping(options, known, f"the options of {whose}")


def _fields(entry: Any, kind: type, what: str, defaults: Mapping[str, Any]) -> dict[str, Any]:
    names = [field.name for field in fields(kind)]
    needed = [f.name for f in fields(kind) if f.default is MISSING and f.name not in defaults]
    said = _mapping(entry, names, what, needed)
    _check_words(said, what)
    return dict(defaults) | {name: value for name, value in said.items() if value is not None}


def _check_words(said: Mapping[str, Any], what: str) -> None:
    for name in _WORDS:
        value = said.get(name)
        if value is not None and not isinstance(value, str):
            raise UserError(f"{what} has the {name} {value!r}, which is no text; put it in quotes")


def _mapping(value: Any, known: Collection[str], what: str, needed: Collection[str] = ()) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise UserError(f"{what} must be lines such as 'name: value', not {value!r}")
    for name in value:
        if name not in known:
            raise UserError(f"{what} has no {name!r}; {_suggest(str(name), known)}")
    if missing := [name for name in needed if value.get(name) is None]:
        raise UserError(f"{what} lacks {' and '.join(missing)}")
    return dict(value)


def _list(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list | tuple) or not value:
        raise UserError(f"{what} must be a list with something in it, not {value!r}")
    return list(value)


def _rate(said: Mapping[str, Any]) -> float | None:
    return None if said.get("rate") is None else _positive(said["rate"], f"the rate of {said['name']!r}")


def _positive(value: Any, what: str) -> float:
    if not _is_number(value) or not value > 0:
        raise UserError(f"{what} is {value!r}; give images per second")
    return float(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _suggest(name: str, known: Collection[str]) -> str:
    close = get_close_matches(name, list(known), n=1)
    return f"did you mean {close[0]}?" if close else f"there are: {', '.join(known)}"


def _folder() -> Any:
    return files("densepath") / "benchmark" / "configs"
