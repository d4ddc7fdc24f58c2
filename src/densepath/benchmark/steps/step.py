"""What a table knows about a verb of the command line: a step of its runs."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

from densepath.annotations.classes import FOLDERS
from densepath.benchmark.checks import mapping
from densepath.benchmark.labelled_sets import LabelledSet, Reader
from densepath.command import Command
from densepath.core.errors import UserError
from densepath.core.keywords import RANDOM, is_of_timm
from densepath.core.plain import plain
from densepath.core.scores import in_percent
from densepath.nets.weights.hub import is_hub_name
from densepath.options import build, default_of, is_required, options_of

PRETRAINING = ("core", "sources", "annotations", "views", "nets", "concepts", "methods", "runs", "training")
TRANSFER = (*PRETRAINING, "transfer")
RUN, OPTIONS = "run", "options.yaml"  # in the folder of a run
# Options that a table sets for every run, of any verb that has them.
_SET = ("data", "out", "seed", "weights", "backbone", "devices", "resume", "evaluate", "workers")

Options = Mapping[str, Any]


@dataclass(frozen=True)
class Step:
    """A verb as a step of a table.

    Args:
        verb: its name in tables, and on the command line unless ``command`` is given.
        schema: the dataclass or function that has its options.
        metrics: the scores that it gives.
        families: prefixes of further scores, one for each class: "auc_" for auc_tumor.
        read: reads the data that it is evaluated on; None if it has no data of its own.
        read_options: the options of a task that ``read`` uses.
        images: number of images (of ``mil``: bags) that go through the network for some options and data.
        recipes: the verb whose recipes it takes; None without recipes. The options are then given in a file.
        own: further options that the table sets: the table of labels.
        needed: options without which the command would do something else; a table must give them.
        source: what it takes from the run before it: "weights", or "features" of an ``embed`` of the weights.
        draws: whether it draws random numbers; one run serves all seeds if not.
        resumes: whether it has ``--resume``.
        one_device: whether it takes only "auto" or "cpu" as its device.
        written: the file of its scores in the folder of the run.
        scores: the content of this file -> its scores by name, and their scale.
        scratch: folders in the run's output that are deleted when it is done.
        code: the packages that its result depends on.
        command: the verb on the command line, if it is another.
        names: option that takes a path or another name -> whether a value is such a name.
    """

    verb: str
    schema: Callable[..., Any]
    metrics: tuple[str, ...] = ()
    families: tuple[str, ...] = ()
    read: Reader | None = None
    read_options: Collection[str] = ()
    images: Callable[[Options, LabelledSet], int] = lambda options, data: len(data.test.names)
    recipes: str | None = None
    own: Collection[str] = ()
    needed: Collection[str] = ()
    source: str = "weights"
    draws: bool = True
    resumes: bool = True
    one_device: bool = False
    written: str = f"{RUN}/metrics.json"
    scores: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict
    scratch: tuple[str, ...] = ()
    code: tuple[str, ...] = TRANSFER
    command: str = ""
    names: Mapping[str, Callable[[Any], bool]] = field(default_factory=dict)

    @property
    def free(self) -> tuple[str, ...]:
        """The options that a table may set."""
        return tuple(name for name in inspect.signature(self.schema).parameters if name not in (*_SET, *self.own))

    def has(self, option: str) -> bool:
        """Whether the verb has an option."""
        return option in inspect.signature(self.schema).parameters

    def default(self, option: str) -> Any:
        """The default of an option."""
        return default_of(self.schema, option)

    def takes_path(self, option: str) -> bool:
        """Whether an option takes the path of a file or a folder, and not another text."""
        return option in _path_options(self.schema)

    def gives(self, metric: str) -> bool:
        """Whether it gives a score."""
        return metric in self.metrics or any(metric.startswith(family) for family in self.families)

    def check(self, options: Any, whose: str) -> None:
        """Check options as the command line does, without running the verb.

        Raises:
            UserError: an option is unknown, or its value is invalid.
        """
        mapping(options, self.free, f"the options of {whose}")
        if options.get("epochs") is not None and options.get("max_steps") is not None:
            raise UserError(f"{whose} has epochs and max_steps; give one of them")

    def typed(self, options: Options) -> dict[str, Any]:
        """Options in the plain types that the command line gives them: 1e-3 is a text in YAML, and means 0.001.

        Raises:
            UserError: an option is unknown, or its value has the wrong type.
        """
        typed: dict[str, Any] = _as_given(_typed(self.verb, self.schema, self.recipes, _as_text(options)), options)
        return typed

    def check_whole(self, options: Options) -> None:
        """Check all options that a table has of a run, also their ranges, and those that do not go together.

        Raises:
            UserError: one of them is invalid, a relative path, or missing.
        """
        if lacking := [name for name in self.needed if options.get(name) is None]:
            raise UserError(f"{self.verb} needs {lacking[0]}; add it to the options of the task")
        for name in filter(self.takes_path, options):
            if name not in self.names or not self.names[name](options[name]):
                _refuse_relative(name, options[name])
        tables = ("labels",) if "labels" in self.own else ()
        _check_whole(self.verb, self.schema, self.recipes, _as_text(options), tables)

    def device(self, devices: str) -> str:
        """What ``--devices`` says for a device of the table."""
        return "auto" if self.one_device and devices != "cpu" else devices

    def result(self, folder: Path) -> dict[str, Any]:
        """The scores in the folder of a run that has ended, in percent.

        Raises:
            OSError, ValueError, LookupError, TypeError: there are none.
        """
        written = self.scores(json.loads((folder / self.written).read_text()))
        return in_percent({n: s for n, s in written.items() if self.gives(n) and s is not None}, written)

    def is_whole(self, folder: Path) -> bool:
        """Whether the folder of a finished run still holds what other runs need of it."""
        return True

    def words(self, options: Options, source: str, workers: int | None) -> list[str]:
        """The words of the command after data, seed and devices.

        Args:
            options: the run's options.
            source: the weights, or "" where there are none.
            workers: processes that decode images; None for the default.
        """
        words = [f"--weights={source}"] if source else []
        words += [f"--config={OPTIONS}"] if self.recipes is not None else as_words(options)
        words.append(f"--out={RUN if '/' in self.written else self.written}")
        words += ["--resume"] * self.resumes
        return words + ([f"--workers={workers}"] if workers is not None and self.has("workers") else [])


def _refuse_relative(option: str, value: Any) -> None:
    """Refuse the relative path of a file or a folder: a run starts in its own folder. Names and keywords may stay."""
    for text in value if isinstance(value, list | tuple) else [value]:
        if isinstance(text, str) and _is_relative(text) and not _is_name(text):
            whole = os.path.abspath(os.path.expanduser(text))
            remedy = whole if os.path.exists(whole) else "its absolute path"
            raise UserError(f"{option} is {text}, a relative path; write {remedy}")


def _is_relative(text: str) -> bool:
    """Whether a text is a path from the home folder, or from a file or a folder of the current folder."""
    return text.startswith("~") or (not os.path.isabs(text) and os.path.exists(text.split(os.sep)[0]))


def _is_name(text: str) -> bool:
    return text in (RANDOM, FOLDERS) or is_hub_name(text) or is_of_timm(text)


@cache
def _path_options(schema: Callable[..., Any]) -> frozenset[str]:
    return frozenset(option.key for option in options_of(schema) if option.is_path)


# Cached: many tasks and rows of a table have equal options.
@cache
def _typed(verb: str, schema: Callable[..., Any], recipes: str | None, options: str) -> dict[str, Any]:
    return Command(f"densepath {verb}", schema, recipes=recipes).parse_recipe(json.loads(options))


@cache
def _check_whole(
    verb: str, schema: Callable[..., Any], recipes: str | None, options: str, of_data: tuple[str, ...]
) -> None:
    values = _typed(verb, schema, recipes, options)
    if is_dataclass(schema):
        paths = [name for name, value in values.items() if value is None and is_required(schema, name)]
        build(schema, values | dict.fromkeys([*paths, *of_data], "PATH"))  # known when there is a run


def _as_text(options: Options) -> str:
    return json.dumps(options, default=str)


def _as_given(values: Any, given: Any) -> Any:
    """Of values in their types those that were given, part by part; paths as they were given."""
    if given is None:
        return None
    if isinstance(values, Path):
        return str(given)
    if not isinstance(given, Mapping) or not isinstance(values, Mapping):
        return plain(values)
    return {name: _as_given(values[name], value) for name, value in given.items()}


def as_words(options: Options) -> list[str]:
    """Options as words of a command line."""
    words = []
    for name, value in options.items():
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no_{name}")
        else:
            words.append(f"--{name}={value if isinstance(value, str) else json.dumps(value)}")
    return words


def with_defaults(step: Step, options: Options, names: Sequence[str]) -> dict[str, Any]:
    """The values of some options."""
    return {name: options.get(name, step.default(name)) for name in names}
