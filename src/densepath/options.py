"""Options read off the signature of a function or a dataclass: types check the values, docstrings are the help."""

from __future__ import annotations

import inspect
import json
import re
import types
from argparse import ArgumentError
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import docstring_parser
from jsonargparse import ActionYesNo, ArgumentParser

from densepath.core.errors import UserError

_WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    Path: "path",
    type(None): "null",
}
_CONTAINERS = (Literal, tuple, list, Sequence, dict)


@dataclass(frozen=True)
class Option:
    """One value that the command line takes.

    Args:
        key: its name, with dots where it belongs to a part: ``augment.flip``.
        annotation: its type.
        default: its default, or ``inspect.Parameter.empty`` where it must be given.
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
        """Whether it takes several values that are any text."""
        return any(str in get_args(a) for a in _alternatives(self.annotation))

    @property
    def is_flag(self) -> bool:
        """Whether its name alone turns it on."""
        return self.annotation is bool

    def words(self, value: Any) -> list[str]:
        """The option as it would be typed to have a value."""
        if self.is_flag and isinstance(value, bool):
            return [f"--{self.key}" if value else f"--no_{self.key}"]
        return [f"--{self.key}={value if isinstance(value, str | Path) else _as_yaml(value)}"]


def options_of(schema: Callable[..., Any], skip: Sequence[str] = (), prefix: str = "") -> Iterator[Option]:
    """The options of a function or a class: one for each parameter, and for each field of one that is a dataclass."""
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
    """The default of a parameter; ``inspect.Parameter.empty`` where it must be given."""
    if is_dataclass(schema):
        field = next(field for field in fields(schema) if field.name == name)
        if field.default_factory is not MISSING:
            return field.default_factory()
    return inspect.signature(schema).parameters[name].default


def is_required(schema: Callable[..., Any], name: str) -> bool:
    """Whether a parameter has no default."""
    return default_of(schema, name) is inspect.Parameter.empty


def build(schema: Callable[..., Any], values: Mapping[str, Any]) -> Any:
    """Call a function or a dataclass with checked values; its parameters that are dataclasses are made from theirs."""
    parts = {name: part_of(annotation) for name, annotation in _hints(schema).items()}
    made = {n: build(part, v) if (part := parts[n]) and isinstance(v, Mapping) else v for n, v in values.items()}
    return schema(**made)


def part_of(annotation: Any) -> type | None:
    """The dataclass that a type is, by itself or in a union with None."""
    return next((a for a in _alternatives(annotation) if isinstance(a, type) and is_dataclass(a)), None)


def describe_parameters(function: Callable[..., Any]) -> dict[str, str]:
    """What the docstring says of each parameter; for a class, what those of its bases say, too."""
    described: dict[str, str] = {}
    for source in reversed(function.__mro__) if isinstance(function, type) else [function]:
        for parameter in docstring_parser.parse(source.__doc__ or "").params:
            text = re.sub(r":\w+:|`", "", " ".join((parameter.description or "").split()))
            for name in parameter.arg_name.split(", "):
                if not (name in described and text.startswith("as in ")):
                    described[name] = text
    return described


def close_match(name: str, known: Sequence[str]) -> str:
    """A question that names the most alike of the known names, or nothing."""
    match = get_close_matches(name, known, n=1)
    return f"did you mean {match[0]}?" if match else ""


class Parser(ArgumentParser):
    """A parser of options that reports what is wrong as a :class:`UserError` of one line.

    Args:
        prog: the command, for the help.
        described: whose docstring describes it.
        positional: the options that are given without their name, in this order.
        complete: whether what has no default must be given.
        renamed: option as it was called before -> its name now.
        short: short form of an option -> its name.
    """

    def __init__(
        self,
        prog: str,
        described: Any = None,
        positional: Sequence[str] = (),
        complete: bool = True,
        renamed: Mapping[str, str] | None = None,
        short: Mapping[str, str] | None = None,
    ) -> None:
        docstring = docstring_parser.parse(getattr(described, "__doc__", "") or "")
        paragraphs = [docstring.short_description, docstring.long_description]
        text = re.sub(r":\w+:|`", "", "\n\n".join(p for p in paragraphs if p))
        super().__init__(prog=prog, description=text, allow_abbrev=False, exit_on_error=False)
        self.options: dict[str, Option] = {}
        self._positional = positional
        self._complete = complete
        self.renamed = dict(renamed or {})
        self._forms = {f"--{form}": f"--{name}" for form, name in (short or {}).items()}

    def add_options(self, options: Iterable[Option], title: str | None = None, description: str | None = None) -> None:
        """Add options, perhaps under a title of their own in the help."""
        group = self.add_argument_group(title, description) if title else self
        for option in options:
            self.options[option.key] = option
            forms = [form for form, name in self._forms.items() if name == f"--{option.key}"]
            text = f"{option.help} In short {forms[0]}." if forms else option.help
            given: dict[str, Any] = {"help": text} | ({} if option.required else {"default": option.default})
            if option.is_flag:
                given["action"] = ActionYesNo(yes_prefix="", no_prefix="no_")
            else:
                given["type"] = option.annotation
            if option.is_list:
                given["metavar"] = "VALUE ..."
            if option.key in self._positional:
                group.add_argument(option.key, **given)
            else:
                group.add_argument(f"--{option.key}", required=option.required and self._complete, **given)
        required = [key for key, option in self.options.items() if option.required and key not in self._positional]
        named = [f"--{key} {key.upper()}" for key in required]
        self.usage = " ".join([self.prog, *map(str.upper, self._positional), *named, "[options]"])

    def read(self, words: Sequence[str]) -> dict[str, Any]:
        """What the words say, before it is checked: option -> its text, or whether its flag is on.

        Raises:
            UserError: a word is unknown, or lacks its value.
        """
        named = {f"--{key}": option for key, option in self.options.items() if key not in self._positional}
        flags = {f"--no_{key}": key for key, option in self.options.items() if option.is_flag}
        said: dict[str, Any] = {}
        places: list[str] = []
        rest = list(words)
        while rest:
            name, equals, value = (word := rest.pop(0)).partition("=")
            name = self._forms.get(name, name)
            if not re.match(r"--?[a-zA-Z]", word):
                places.append(word)
            elif name in flags and not equals:
                said[flags[name]] = False
            elif name not in named:
                raise UserError(self.unknown(name, [*named, *flags]))
            elif named[name].is_flag:
                said[named[name].key] = value if equals else True
            else:
                count = 0 if equals else next((i for i, w in enumerate(rest) if w.startswith("--")), len(rest))
                count = count if named[name].is_list else min(count, 1)
                if not (equals or count):
                    raise UserError(f"{name} needs a value; {self.see_help}")
                # Text is written in quotes: a run folder may be called 0, or hold a comma.
                words_of = [*map(_as_yaml, rest[:count])] if named[name].is_text_list else rest[:count]
                text = value if equals else ", ".join(words_of)
                as_list = named[name].is_list and not text.startswith("[") and text != "null"
                said[named[name].key] = f"[{text}]" if as_list else text
                rest = rest[count:]
        if len(places) > len(self._positional):
            raise UserError(f"unexpected argument {places[len(self._positional)]!r}; {self.see_help}")
        return said | dict(zip(self._positional, places, strict=False))

    def check(self, said: Mapping[str, Any]) -> dict[str, Any]:
        """The values of all options in their types, those of parts in dictionaries of their own.

        Args:
            said: option -> its value, or the text of it.

        Raises:
            UserError: an option is missing, or a value is not of its type.
        """
        missing = [
            key for key, option in self.options.items() if option.required and self._complete and key not in said
        ]
        if missing:
            names = [key if key in self._positional else f"--{key}" for key in missing]
            raise UserError(f"{' and '.join(names)} must be given; {self.see_help}")
        words = [word for key in said if key not in self._positional for word in self.options[key].words(said[key])]
        try:
            values: dict[str, Any] = self.parse_args([*words, *(said[key] for key in self._positional)]).as_dict()
        except ArgumentError as error:
            raise UserError(self._explain(str(error), said)) from None
        return values

    def unknown(self, name: str, known: Sequence[str]) -> str:
        """What is said of an option that there is not."""
        key = name.removeprefix("--")
        if key in self.renamed:
            return f"{name} is now --{self.renamed[key]}"
        return f"unknown option {name}; {close_match(name, known) or self.see_help}"

    def _explain(self, message: str, said: Mapping[str, Any]) -> str:
        match = re.match(r'Parser key "([^"]+)"', message)
        option = self.options.get(match[1]) if match else None
        if option is None:
            return f"{message}; {self.see_help}"
        name = option.key if option.key in self._positional else f"--{option.key}"
        value = said.get(option.key, "its default")
        hint = close_match(str(value), [c for c in _choices(option.annotation) if isinstance(c, str)])
        return f"{name} takes {_in_words(option.annotation)}, not {value!r}" + (f"; {hint}" if hint else "")

    @property
    def see_help(self) -> str:
        """Where the options are listed."""
        return f"see {self.prog} --help"


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    """The types of all parameters; for a class, of those too that it hands on to its bases."""
    hints: dict[str, Any] = {}
    for source in reversed(function.__mro__) if isinstance(function, type) else [function]:
        hints |= get_type_hints(vars(source).get("__init__", object) if isinstance(source, type) else source)
    return {name: hints[name] for name in inspect.signature(function).parameters}


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def _typeable(annotation: Any) -> Any:
    """What of a type can be typed as words: no functions, classes and networks; None where nothing is left."""
    if annotation is Any:
        return annotation
    typed = [a for a in _alternatives(annotation) if a in _WORDS or get_origin(a) in _CONTAINERS or part_of(a)]
    return Union[tuple(typed)] if any(a is not type(None) for a in typed) else None  # noqa: UP007


def _choices(annotation: Any) -> list[Any]:
    """The values of the literals in a type."""
    return [value for a in _alternatives(annotation) if get_origin(a) is Literal for value in get_args(a)]


def _in_words(annotation: Any) -> str:
    if get_origin(annotation) in (Union, types.UnionType):
        return " or ".join(map(_in_words, get_args(annotation)))
    if get_origin(annotation) is Literal:
        return f"one of {', '.join(map(str, get_args(annotation)))}"
    arguments = get_args(annotation)
    if get_origin(annotation) is tuple and Ellipsis not in arguments:
        return f"{len(arguments)} values, each {_in_words(arguments[0])}"
    if arguments:
        return f"values, each {_in_words(arguments[0])}"
    return _WORDS.get(annotation, getattr(annotation, "__name__", str(annotation)).lower())


def _as_yaml(value: Any) -> str:
    """JSON that YAML reads: characters beyond U+FFFF are escaped as one, not as two that YAML does not join."""
    return json.dumps(value, default=str, ensure_ascii=False).encode("ascii", "backslashreplace").decode("ascii")
