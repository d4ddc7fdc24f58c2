"""Options from the signature of a function or a dataclass: its types check the values, its docstring is the help."""

from __future__ import annotations

import inspect
import json
import os
import re
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from datetime import date
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from densepath.core.paths import AnyPath

_WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    Path: "path",
    type(None): "null",
}
_PATHS = ("data", "images", "labels", "runs", "weights")  # also where they are texts
_CONTAINERS = (Literal, tuple, list, Sequence, dict)
# The options of any verb that are shown first, in this order.
EVERYDAY = (
    *(
        "data",
        "labels",
        "features",
        "table",
        "target",
        "patient",
        "out",
        "config",
        "weights",
        "method",
        "backbone",
        "detector",
        "model",
        "freeze",
        "folds",
        "epochs",
        "max_steps",
    ),
    *("batch_size", "lr", "devices", "resume"),
)


@dataclass(frozen=True)
class Option:
    """One option of the command line.

    Args:
        key: name, with dots for an option of a part: ``augment.flip``.
        annotation: type.
        default: default, or ``inspect.Parameter.empty`` if the option must be given.
        help: a line for ``--help``.
    """

    key: str
    annotation: Any
    default: Any
    help: str

    @property
    def required(self) -> bool:
        """Whether it must be given."""
        return self.default is inspect.Parameter.empty

    @property
    def is_list(self) -> bool:
        """Whether it takes several values."""
        return any(get_origin(a) in (tuple, list, Sequence) for a in _alternatives(self.annotation))

    @property
    def is_text_list(self) -> bool:
        """Whether it takes several values of arbitrary text."""
        return any(str in get_args(a) for a in _alternatives(self.annotation))

    @property
    def is_open_list(self) -> bool:
        """Whether it takes any number of values, and nothing else."""
        kinds = [a for a in _alternatives(self.annotation) if a is not type(None)]
        return all(get_origin(a) in (list, Sequence) or get_args(a)[1:] == (Ellipsis,) for a in kinds)

    @property
    def is_path(self) -> bool:
        """Whether it takes a path, or several."""
        return Path in _alternatives(self.annotation) or self.key in _PATHS

    @property
    def is_flag(self) -> bool:
        """Whether it is turned on by its name, without a value."""
        return self.annotation is bool

    def takes(self, value: Any) -> bool:
        """Whether it takes null, or a value such as false or a list; as words these would be the names of files."""
        if _holds_date(value):
            return False
        alternatives = _alternatives(self.annotation)
        if value is None or self.annotation is Any:
            return self.annotation is Any or type(None) in alternatives
        if not isinstance(value, bool | list | tuple | Mapping) or not {str, Path}.intersection(alternatives):
            return True
        kinds = {bool: bool in alternatives, Mapping: any(get_origin(a) is dict for a in alternatives)}
        return next((known for kind, known in kinds.items() if isinstance(value, kind)), self.is_list)

    @property
    def is_text(self) -> bool:
        """Whether it takes a path, a name or another text, or several."""
        return self.is_text_list or bool({str, Path}.intersection(_alternatives(self.annotation)))

    @property
    def is_number(self) -> bool:
        """Whether it takes a number, or several."""
        alternatives = _alternatives(self.annotation)
        return any({int, float}.intersection((a, *get_args(a))) for a in alternatives)

    @property
    def is_number_or_list(self) -> bool:
        """Whether it takes a number as well as several, so that a list of one is that number."""
        return self.is_list and bool({int, float}.intersection(_alternatives(self.annotation)))

    def takes_written(self, value: Any) -> bool:
        """Whether it takes a value of a YAML file; as texts, 1e3 would be 1000.0, and 1_0 would be 10."""
        if isinstance(value, list | tuple):
            return not self.is_text_list or all(isinstance(entry, str | Path) for entry in value)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        takes_number = {type(value), float}.intersection(_alternatives(self.annotation))
        return bool(takes_number) or not (is_number and self.is_text)

    def words(self, value: Any) -> list[str]:
        """The words on the command line that give the option a value."""
        if self.is_flag and isinstance(value, bool):
            return [f"--{self.key}" if value else f"--no_{self.key}"]
        plain = isinstance(value, bool | int | float | list | tuple | Mapping | types.NoneType)
        return [f"--{self.key}={as_yaml(value) if plain else value}"]


def options_of(schema: Callable[..., Any], skip: Sequence[str] = (), prefix: str = "") -> Iterator[Option]:
    """The options of a function or a class: its parameters, and the fields of those that are dataclasses."""
    described = describe_parameters(schema)
    for name, annotation in _hints(schema).items():
        part, typed = part_of(annotation), _typeable(annotation)
        if name in skip or typed is None:
            continue
        if part is not None:
            yield from options_of(part, prefix=f"{prefix}{name}.")
        else:
            yield Option(f"{prefix}{name}", typed, default_of(schema, name), described.get(name, ""))


def default_of(schema: Callable[..., Any], name: str) -> Any:
    """The default of a parameter; ``inspect.Parameter.empty`` if it must be given."""
    if is_dataclass(schema):
        field = next(field for field in fields(schema) if field.name == name)
        if field.default_factory is not MISSING:
            return field.default_factory()
        return inspect.Parameter.empty if field.default is MISSING else field.default
    return inspect.signature(schema).parameters[name].default


def is_required(schema: Callable[..., Any], name: str) -> bool:
    """Whether a parameter has no default."""
    return default_of(schema, name) is inspect.Parameter.empty


def build(schema: Callable[..., Any], values: Mapping[str, Any]) -> Any:
    """Call a function or a dataclass with checked values; dictionaries become dataclasses where these are expected."""
    parts = {name: part_of(annotation) for name, annotation in _hints(schema).items()}
    made = {n: build(part, v) if (part := parts[n]) and isinstance(v, Mapping) else v for n, v in values.items()}
    return schema(**made)


def part_of(annotation: Any) -> type | None:
    """The dataclass in a type, which may be a union with None; None if there is none."""
    return next((a for a in _alternatives(annotation) if isinstance(a, type) and is_dataclass(a)), None)


def describe_parameters(function: Callable[..., Any]) -> dict[str, str]:
    """The description of each parameter in the docstring; for a class, also in those of its bases."""
    import docstring_parser

    described: dict[str, str] = {}
    for source in reversed(function.__mro__) if isinstance(function, type) else [function]:
        for parameter in docstring_parser.parse(source.__doc__ or "").params:
            text = re.sub(r":\w+:|`", "", " ".join((parameter.description or "").split()))
            for name in parameter.arg_name.split(", "):
                if not (name in described and text.startswith("as in ")):
                    described[name] = text
    return described


def close_match(name: str, known: Sequence[str]) -> str:
    """A question with the most similar of the known names, or "".

    Names with dots are also compared by their last component: ``--num_concepts`` with ``--method.num_concepts``.
    """
    components: dict[str, list[str]] = {}
    for each in known:
        components.setdefault(_last(each), []).append(each)
    same = components.get(_last(name), [])
    close = get_close_matches(name, known, n=1)
    if "." in name and close and close[0].startswith(name):
        same = []  # a longer name in the same part is the likelier one
    match = same or close
    if not match and (close := get_close_matches(_last(name), components, n=1)):
        match = components[close[0]]
    return f"did you mean {' or '.join(match)}?" if match else ""


def _last(name: str) -> str:
    """The last component of a dotted name of an option."""
    return name.removeprefix("--").rpartition(".")[2]


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    """The types of all parameters; for a class, also of those that it passes to its bases."""
    hints: dict[str, Any] = {}
    for source in reversed(function.__mro__) if isinstance(function, type) else [function]:
        hints |= get_type_hints(vars(source).get("__init__", object) if isinstance(source, type) else source)
    return {name: _as_typed(hints.get(name, Any)) for name in inspect.signature(function).parameters}


def _as_typed(annotation: Any) -> Any:
    """A type with Path in place of anything that stands for a path, and in lists with text, as on the command line."""
    alternatives = _alternatives(annotation)
    known = [Path if a == os.PathLike[str] else Sequence[str] if a == Sequence[AnyPath] else a for a in alternatives]
    return Union[tuple(known)] if len(alternatives) > 1 else known[0]  # noqa: UP007


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def _typeable(annotation: Any) -> Any:
    """The part of a type that has a text form: no functions, classes or networks; None if nothing is left."""
    if annotation is Any:
        return annotation
    typed = [a for a in _alternatives(annotation) if a in _WORDS or get_origin(a) in _CONTAINERS or part_of(a)]
    return Union[tuple(typed)] if any(a is not type(None) for a in typed) else None  # noqa: UP007


def choices_of(annotation: Any) -> list[Any]:
    """The values of the literals in a type."""
    return [value for a in _alternatives(annotation) if get_origin(a) is Literal for value in get_args(a)]


def in_words(annotation: Any) -> str:
    """A type in the words of an error message."""
    if get_origin(annotation) in (Union, types.UnionType):
        return " or ".join(in_words(a) for a in get_args(annotation) if a is not type(None))
    if get_origin(annotation) is Literal:
        return f"one of {', '.join(map(str, get_args(annotation)))}"
    arguments = get_args(annotation)
    if get_origin(annotation) is tuple and Ellipsis not in arguments:
        return f"{len(arguments)} values, each {in_words(arguments[0])}"
    if arguments:
        return f"values, each {in_words(arguments[0])}"
    return _WORDS.get(annotation, getattr(annotation, "__name__", str(annotation)).lower())


def kind_of(annotation: Any) -> str:
    """What the help says of a type: a kind of number; empty where it takes texts or paths, or shows its choices."""
    alternatives = [a for a in _alternatives(annotation) if a is not type(None) and get_origin(a) is not Literal]
    texts = any(a in (str, Path) or {str, Path}.intersection(get_args(a)) for a in alternatives)
    return "" if texts else " or ".join(map(in_words, alternatives))


def _holds_date(value: Any) -> bool:
    """Whether a value of a YAML file is a date, or a list or mapping that holds one."""
    if isinstance(value, Mapping | list | tuple):
        return any(map(_holds_date, value.values() if isinstance(value, Mapping) else value))
    return isinstance(value, date)


def _as_json(value: Any) -> Any:
    """What JSON does not know: numbers and arrays of NumPy, and others as text."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


def as_yaml(value: Any) -> str:
    """JSON that YAML can read: a character above U+FFFF is one escape, not two surrogates, which YAML does not join."""
    return json.dumps(value, default=_as_json, ensure_ascii=False).encode("ascii", "backslashreplace").decode("ascii")
