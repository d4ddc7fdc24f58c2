"""Command-line options read off a function's signature: its types check the values, its docstring is the help."""

from __future__ import annotations

import inspect
import json
import re
import types
from argparse import ArgumentError
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from difflib import get_close_matches
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import docstring_parser
from jsonargparse import ActionYesNo, ArgumentParser

from densepath.core.errors import UserError

_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}


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
        return [f"--{self.key}={value if isinstance(value, str) else _as_yaml(value)}"]


def options_of(function: Callable[..., Any], skip: Sequence[str] = (), prefix: str = "") -> Iterator[Option]:
    """The options of a function or a class: one for each parameter, and for each field of one that is a dataclass."""
    described = describe_parameters(function)
    for name, annotation in _hints(function).items():
        default = inspect.signature(function).parameters[name].default
        part = part_of(annotation)
        if name in skip or any(get_origin(a) is Callable for a in _alternatives(annotation)):
            continue  # a function cannot be typed
        if part is not None:
            yield from options_of(part, prefix=f"{prefix}{name}.")
        else:
            yield Option(f"{prefix}{name}", annotation, default, described.get(name, ""))


def call_with(function: Callable[..., Any], values: Mapping[str, Any]) -> Any:
    """Call a function with parsed values; its parameters that are dataclasses are made from their fields."""
    parts = {name: part_of(annotation) for name, annotation in _hints(function).items()}
    made = {n: call_with(part, v) if (part := parts[n]) and isinstance(v, Mapping) else v for n, v in values.items()}
    return function(**made)


def part_of(annotation: Any) -> type | None:
    """The dataclass that a type is, alone or beside None."""
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
        function: whose docstring describes it.
        positional: the options that are given without their name, in this order.
        complete: whether what has no default must be given.
    """

    def __init__(
        self, prog: str, function: Callable[..., Any], positional: Sequence[str] = (), complete: bool = True
    ) -> None:
        docstring = docstring_parser.parse(function.__doc__ or "")
        paragraphs = [docstring.short_description, docstring.long_description]
        text = re.sub(r":\w+:|`", "", "\n\n".join(p for p in paragraphs if p))
        super().__init__(prog=prog, description=text, allow_abbrev=False, exit_on_error=False)
        self.options: dict[str, Option] = {}
        self._positional = positional
        self._complete = complete

    def add_options(self, options: Iterable[Option], title: str | None = None, description: str | None = None) -> None:
        """Add options, perhaps under a title of their own in the help."""
        group = self.add_argument_group(title, description) if title else self
        for option in options:
            self.options[option.key] = option
            given: dict[str, Any] = {"help": option.help} | ({} if option.required else {"default": option.default})
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

    def parse(self, words: Sequence[str]) -> dict[str, Any]:
        """The values of all options, those of parts in dictionaries of their own.

        Raises:
            UserError: a word is unknown, missing, or no value of its option.
        """
        flags, typed, places = self._sort(words)
        try:
            parsed = self.parse_args([*flags, *(f"--{key}={value}" for key, value in typed.items()), *places])
        except ArgumentError as error:
            raise UserError(self._explain(str(error), typed, places)) from None
        values: dict[str, Any] = parsed.as_dict()
        return values

    def _sort(self, words: Sequence[str]) -> tuple[list[str], dict[str, str], list[str]]:
        """Flags, options with their values (several are written ``[400, 522]``), and what stands without a name."""
        named = {f"--{key}": option for key, option in self.options.items() if key not in self._positional}
        known = list(named) + [f"--no_{key}" for key, option in self.options.items() if option.is_flag]
        flags: list[str] = []
        typed: dict[str, str] = {}
        places: list[str] = []
        rest = list(words)
        while rest:
            name, equals, value = (word := rest.pop(0)).partition("=")
            if not re.match(r"--?[a-zA-Z]", word):
                places.append(word)
            elif name not in known:
                raise UserError(f"unknown option {name}; {close_match(name, known) or self._see_help}")
            elif name not in named or named[name].is_flag:
                flags.append(word)
            else:
                count = 0 if equals else next((i for i, w in enumerate(rest) if w.startswith("--")), len(rest))
                count = count if named[name].is_list else min(count, 1)
                if not (equals or count):
                    raise UserError(f"{name} needs a value; {self._see_help}")
                # Text is written in quotes: a run folder may be called 0, or hold a comma.
                words_of = [*map(_as_yaml, rest[:count])] if named[name].is_text_list else rest[:count]
                text = value if equals else ", ".join(words_of)
                as_list = named[name].is_list and not text.startswith("[") and text != "null"
                typed[name.removeprefix("--")] = f"[{text}]" if as_list else text
                rest = rest[count:]
        if len(places) > len(self._positional):
            raise UserError(f"unexpected argument {places[len(self._positional)]!r}; {self._see_help}")
        missing = [key for key in self._positional[len(places) :] if self._complete]
        missing += [n for n, o in named.items() if o.required and self._complete and o.key not in typed]
        if missing:
            raise UserError(f"{' and '.join(missing)} must be given; {self._see_help}")
        return flags, typed, places

    def _explain(self, message: str, typed: Mapping[str, str], places: Sequence[str]) -> str:
        match = re.match(r'Parser key "([^"]+)"', message)
        option = self.options.get(match[1]) if match else None
        if option is None:
            return f"{message}; {self._see_help}"
        name = option.key if option.key in self._positional else f"--{option.key}"
        value = {**typed, **dict(zip(self._positional, places, strict=False))}.get(option.key, "its default")
        hint = close_match(value, [c for c in _choices(option.annotation) if isinstance(c, str)])
        return f"{name} takes {_in_words(option.annotation)}, not {value!r}" + (f"; {hint}" if hint else "")

    @property
    def _see_help(self) -> str:
        return f"see {self.prog} --help"


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    """The types of all parameters; for a class, of those too that it hands on to its bases."""
    hints: dict[str, Any] = {}
    for source in reversed(function.__mro__) if isinstance(function, type) else [function]:
        hints |= get_type_hints(vars(source).get("__init__", object) if isinstance(source, type) else source)
    return {name: hints[name] for name in inspect.signature(function).parameters}


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


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
