"""The entries of a table's YAML file: its tasks and its rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from densepath.benchmark.checks import checked_seeds, is_number, listed, mapping, positive
from densepath.benchmark.steps import STEPS, TASKS
from densepath.benchmark.steps.pretraining import pretraining_options
from densepath.core.errors import UserError, counted, suggest
from densepath.training.nested_options import merged
from densepath.training.recipes import load_recipe
from densepath.training.resolve import over_recipe
from densepath.transfer.detection.detectors import BOXES_ONLY, DETECTORS
from densepath.transfer.detection.object_metrics import OBJECT_METRICS

_WORDS = ("name", "verb", "data", "table", "column", "recipe", "weights", "backbone", "curve", "tiles")
_OF_ROWS = tuple(verb for verb in STEPS if verb not in ("pretrain", "sam"))  # whose options a row may override


@dataclass(frozen=True)
class Task:
    """A downstream task that every row is evaluated on.

    Args:
        name: unique name; the paper's numbers refer to it.
        verb: the step that evaluates it, such as "probe" or "mil".
        data: name of a labelled data set.
        metrics: scores to report, in the order of the paper's numbers.
        options: options of the verb.
        table: heading of the part of the table that shows it; tasks with the same heading stand side by side.
        column: prefix of its column headings.
        rate: assumed images per second, if it differs from the table's.
        seeds: its own seeds, if they differ from the table's.
        tiles: name of the images for pre-training, where ``--tiles`` names several; by default that of the data.
        pretrain: options of ``pretrain`` for this task, which override those of the rows.
        embed: options of ``embed``, for a task on features.
    """

    name: str
    verb: str
    data: str
    metrics: tuple[str, ...]
    options: Mapping[str, Any]
    table: str
    column: str = ""
    rate: float | None = None
    seeds: tuple[int, ...] | None = None
    tiles: str = ""
    pretrain: Mapping[str, Any] = field(default_factory=dict)
    embed: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """A row of the table: weights that are compared with others.

    Args:
        name: the label of the row.
        recipe: the recipe that pre-trains the weights; None if ``weights`` is given.
        weights: "random", a file, a run folder or a timm name; None if ``recipe`` is given. A row with neither has only
            the paper's numbers.
        options: options of ``pretrain``; they override those of the recipe and of the table.
        backbone: a timm name.
        needs: name of an input that the user must give -> the option that takes it (``labels``).
        paper: task -> the paper's numbers in the order of the task's metrics, None for a missing number.
        steps: verb -> options of this step, which override those of the tasks. In YAML each is an entry of its own:
            ``detect: {detector: vitdet}`` for a transformer.
        curve: the line in the plot of scores against pre-training length that the row is a point of.
        rate: assumed images per second, if it differs from the table's.
        replaces: whether ``backbone`` is given for this row, and so overrides that of its recipe.
        sam: options of ``sam``, which replaces ``detect`` for this row; its weights are a Segment Anything model.
    """

    name: str
    recipe: str | None
    weights: str | None
    options: Mapping[str, Any]
    backbone: str
    needs: Mapping[str, str]
    paper: Mapping[str, Sequence[float | None]]
    steps: Mapping[str, Mapping[str, Any]]
    curve: str | None = None
    rate: float | None = None
    sam: Mapping[str, Any] | None = None
    replaces: bool = False

    @property
    def runs(self) -> bool:
        """Whether it has anything to run."""
        return self.recipe is not None or self.weights is not None

    def pretraining(self, given: Mapping[str, Any], task: Task | None = None) -> dict[str, Any]:
        """All options of its pre-training; ``given``: dotted option -> value given by the user.

        Raises:
            UserError: an option is invalid.
        """
        options = merged(self.options, task.pretrain) if task is not None else self.options
        try:
            return pretraining_options(str(self.recipe), options, self.backbone, given, replaces=self.replaces)
        except UserError as error:
            raise UserError(f"the row {self.name!r}: {error}") from None


def read_task(entry: Any) -> Task:
    """Read a task. Raises UserError if it is invalid."""
    names = ("recipe", *(f.name for f in fields(Task)))
    values = _fields(entry, Task, names, "a task", {"options": {}, "table": None})
    name, verb = values["name"], values["verb"]
    values["table"] = values["table"] or values["data"]
    if verb not in TASKS:
        raise UserError(f"the task {name!r} has the verb {verb!r}; use one of {', '.join(TASKS)}")
    step = STEPS[verb]
    metrics = tuple(listed(values["metrics"], f"metrics of {name!r}"))
    for metric in metrics:
        if not step.gives(str(metric)):
            raise UserError(f"{verb} gives no {metric!r}; {suggest(str(metric), step.metrics)}")
    if recipe := values.pop("recipe", None):
        step.check(values["options"], f"the task {name!r}")
        known = load_recipe(recipe, step.recipes or verb)
        kept = {option: value for option, value in known.items() if option in step.free or not step.has(option)}
        values["options"] = over_recipe(step.schema, kept, values["options"], f"the recipe {recipe}")
    values["options"] = typed_options(verb, values["options"], f"the task {name!r}")
    if values.get("pretrain"):
        values["pretrain"] = typed_options("pretrain", values["pretrain"], f"the task {name!r} (pretrain)")
    if values.get("embed"):
        if step.source != "features":
            raise UserError(f"the task {name!r} has embed, but {verb} uses no features; remove it")
        values["embed"] = typed_options("embed", values["embed"], f"the task {name!r} (embed)")
    _check_masks(metrics, values["options"], f"the task {name!r}")
    for what in ("data", "tiles"):
        if any(sign in values.get(what, "") for sign in "/="):
            raise UserError(f"the task {name!r} has the {what} {values[what]!r}; use a name without / and =")
    values["tiles"] = values.get("tiles") or values["data"]
    if values.get("seeds") is not None:
        values["seeds"] = checked_seeds(values["seeds"])
    return Task(**{**values, "metrics": metrics, "rate": _rate(values)})


def read_row(entry: Any, tasks: Sequence[Task], common: Mapping[str, Any], backbone: str) -> Row:
    """Read a row. Raises UserError if it is invalid.

    Args:
        entry: what the YAML file has.
        tasks: of the table.
        common: options of ``pretrain`` for all rows.
        backbone: of rows without their own.
    """
    names = [*(f.name for f in fields(Row) if f.name not in ("steps", "replaces")), *_OF_ROWS]
    defaults: dict[str, Any] = dict.fromkeys(("recipe", "weights")) | {"backbone": backbone, "steps": {}}
    values = _fields(entry, Row, names, "a row", defaults | {key: {} for key in ("options", "needs", "paper")})
    name = values["name"]
    values["replaces"] = isinstance(entry, Mapping) and "backbone" in entry
    values["steps"] = {verb: values.pop(verb) for verb in _OF_ROWS if verb in values}
    if values["recipe"] is not None and values["weights"] is not None:
        raise UserError(f"the row {name!r} must have either a recipe or weights")
    if values["recipe"] is None and values["weights"] is None and not values["paper"]:
        raise UserError(f"the row {name!r} must have either a recipe or weights, or a paper's numbers")
    if values["recipe"] is None and (values["options"] or values["needs"]):
        raise UserError(f"the row {name!r} has weights, so there is nothing to pre-train; remove its options and needs")
    if values.get("sam") is not None and (values["weights"] is None or any(task.verb != "detect" for task in tasks)):
        raise UserError(f"the row {name!r} has sam, which needs weights and works with detect tasks only; remove sam")
    of_steps = {"pretrain": values["options"], "sam": values.get("sam") or {}, **values["steps"]}
    of_steps = {verb: typed_options(verb, options, f"the row {name!r}") for verb, options in of_steps.items()}
    values["options"] = of_steps["pretrain"]
    values["steps"] = {verb: of_steps[verb] for verb in values["steps"]}
    values["sam"] = of_steps["sam"] if values.get("sam") is not None else None
    for task in tasks:
        if task.verb == "detect" and values.get("sam") is None:
            _check_masks(task.metrics, {**task.options, **values["steps"].get("detect", {})}, f"the row {name!r}")
    _check_numbers(name, values["paper"], tasks)
    for need, place in mapping(values["needs"], values["needs"], f"the needs of {name!r}").items():
        if not isinstance(place, str):
            raise UserError(f"{name!r} needs {need!r} for {place!r}; name the option that takes it")
    options = {} if values["recipe"] is None else merged(common, values["options"])
    row = Row(**{**values, "options": options, "rate": _rate(values)})
    if row.recipe is not None:
        for own in dict.fromkeys(map(str, (task.pretrain for task in tasks))):  # before any data is read
            row.pretraining({}, next(task for task in tasks if str(task.pretrain) == own))
    for task in tasks if row.runs and row.sam is None else ():
        try:
            STEPS[task.verb].check_whole({**task.options, **row.steps.get(task.verb, {})})
        except UserError as error:
            raise UserError(f"the row {name!r} on the task {task.name!r}: {error}") from None
    return row


def _check_numbers(name: str, paper: Any, tasks: Sequence[Task]) -> None:
    metrics = {task.name: task.metrics for task in tasks}
    for measured, numbers in mapping(paper, tuple(metrics), f"the paper's numbers of {name!r}").items():
        if len(listed(numbers, f"numbers of {name!r}")) != len(metrics[measured]):
            raise UserError(
                f"{name!r} has {counted(len(numbers), 'paper number')} for {measured}; give {len(metrics[measured])}"
            )
        if not all(number is None or is_number(number) for number in numbers):
            raise UserError(
                f"the paper's numbers of {name!r} for {measured} are {numbers}; give numbers, or null for a missing one"
            )


def typed_options(verb: str, options: Any, whose: str) -> dict[str, Any]:
    """Options in their types, checked without running the verb. Of pre-training only the share of the images has one:
    the others are checked together with those of the recipe.

    Raises:
        UserError: an option is invalid.
    """
    step = STEPS[verb]
    step.check(options, whose)
    detector = options.get("detector")
    if detector is not None and str(detector) not in DETECTORS:
        raise UserError(f"no detector is called {detector!r}; {suggest(str(detector), DETECTORS)}")
    early = options if verb != "pretrain" else {n: value for n, value in options.items() if n == "fraction"}
    try:
        return {**options, **step.typed(early)}
    except UserError as error:
        raise UserError(f"{whose}: {error}") from None


def check_words(values: Mapping[str, Any], what: str) -> None:
    """Check that names are texts. Raises UserError."""
    for name in _WORDS:
        value = values.get(name)
        if value is not None and not isinstance(value, str):
            raise UserError(f"{what} has the {name} {value!r}, which is not text; put it in quotes")


def check_names(names: Sequence[str], what: str) -> None:
    """Check that names differ. Raises UserError."""
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"two {what} are called {twice[0]!r}; give each a unique name")


def _check_masks(metrics: Sequence[str], options: Mapping[str, Any], whose: str) -> None:
    masks = [metric for metric in metrics if metric.startswith("mask_") or metric in OBJECT_METRICS]
    if masks and options.get("detector") in BOXES_ONLY:
        raise UserError(f"{whose} has no {masks[0]}: {options['detector']} finds boxes only; remove it")


def _fields(entry: Any, kind: type, names: Sequence[str], what: str, defaults: Mapping[str, Any]) -> dict[str, Any]:
    free = (MISSING, MISSING)
    needed = [f.name for f in fields(kind) if (f.default, f.default_factory) == free and f.name not in defaults]
    values = mapping(entry, names, what, needed)
    check_words(values, what)
    return dict(defaults) | {name: value for name, value in values.items() if value is not None}


def _rate(values: Mapping[str, Any]) -> float | None:
    return None if values.get("rate") is None else positive(values["rate"], f"the rate of {values['name']!r}")
