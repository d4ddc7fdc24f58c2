"""One verb of the command line: its options, the recipe under them, and the call they become."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import yaml

from densepath.core.errors import UserError
from densepath.options import Option, Parser, call_with, close_match, describe_parameters, options_of

_VIEWS = re.compile(r"--(no_)?augment\.")
# Of two options that say the same thing, one that is typed takes the place of the recipe's other one.
_RIVALS = {"epochs": "max_steps", "max_steps": "epochs"}
_METHOD = "method."


class Command:
    """A function that can be called by typed words.

    ``--config`` names a recipe for a function that has such. One with the parameters ``method`` and ``method_options``
    has those of pre-training: ``--method`` names a method, and ``--method.num_concepts 8`` and the like are the
    parameters of that method's constructor.

    Args:
        prog: the command, for help and errors.
        function: what is called.
        positional: its parameters that are given without their name.
        given: its parameters that nobody types, and their values.
        recipes: the verb under which the package has recipes for it.
    """

    def __init__(
        self,
        prog: str,
        function: Callable[..., Any],
        positional: Sequence[str] = (),
        given: Mapping[str, Any] | None = None,
        recipes: str = "",
    ) -> None:
        self.prog = prog
        self.function = function
        self.positional = positional
        self.given = dict(given or {})
        self.parameters = inspect.signature(function).parameters
        self.recipes = recipes
        self.takes_method = "method_options" in self.parameters
        self.takes_recipe = self.takes_method or bool(recipes)

    def run(self, words: Sequence[str]) -> Any:
        """Call the function and return what it returns."""
        return call_with(self.function, {**self.parse(words), **self.given})

    def help(self, words: Sequence[str]) -> str:
        """All options, those of the method that the words choose among them."""
        return self._prepare([word for word in words if word not in ("-h", "--help")])[0].format_help()

    def configuration(self, words: Sequence[str]) -> str:
        """What the words resolve to, as YAML that ``--config`` takes."""
        values = self.parse([word for word in words if word != "--print_config"], complete=False)
        required = [name for name, parameter in self.parameters.items() if parameter.default is parameter.empty]
        named = {name: value for name, value in values.items() if value is not None or name not in required}
        return yaml.safe_dump(_plain(named), sort_keys=False)

    def parse(self, words: Sequence[str], complete: bool = True) -> dict[str, Any]:
        """The arguments of the call; its dataclasses are still dictionaries of their fields.

        Args:
            words: what was typed.
            complete: whether what has no default must be given.

        Raises:
            UserError: the words, or the recipe that they name, are not what the function takes.
        """
        return self._values(*self._prepare(words, complete))

    def parse_recipe(self, recipe: Mapping[str, Any]) -> dict[str, Any]:
        """What options become that are given as a recipe gives them; none need be among them.

        Raises:
            UserError: one of them is no option of the function, or its value is of the wrong kind.
        """
        return self._values(*self._prepare((), complete=False, recipe=recipe))

    def _values(self, parser: Parser, words: Sequence[str], method: str | None) -> dict[str, Any]:
        typed = parser.parse(words)
        values = {name: value for name, value in typed.items() if name in self.parameters}
        for name, parameter in self.parameters.items():
            touched = any(word.startswith((f"--{name}.", f"--no_{name}.")) for word in words)
            if isinstance(values.get(name), dict) and parameter.default is None and not touched:
                values[name] = None
        if method:
            values |= {"method": method, "method_options": typed["method"]}
        return values

    def _prepare(
        self, words: Sequence[str], complete: bool = True, recipe: Mapping[str, Any] | None = None
    ) -> tuple[Parser, list[str], str | None]:
        """The parser for the words, the words with those of the recipe in front, and the method they choose."""
        parser = Parser(self.prog, self.function, self.positional, complete)
        options = list(options_of(self.function, skip=("method", "method_options", *self.given)))
        described = describe_parameters(self.function)
        for part, members in groupby(sorted(options, key=_part), key=_part):
            parser.add_options(members, f"{part}: {described.get(part, '')}" if part else None)
        if not self.takes_recipe:
            return parser, [*_words_of(recipe or {}, words, parser), *words], None
        # Imported here, because these need torch.
        from densepath.training.recipes import load_recipe, own_augment, recipe_names

        config, words = _take(words, "--config")
        recipe = load_recipe(config, self.recipes) if config else dict(recipe or {})
        method = None
        if self.takes_method:
            chosen, words = _take(words, "--method")
            method = str(chosen or recipe.get("method") or self.parameters["method"].default)
            _add_method(parser, method)
            if recipe.get("method", method) != method:
                recipe.pop("method_options", None)
            if not recipe.get("augment") and any(_VIEWS.match(word) for word in words):
                recipe["augment"] = own_augment(method)
        names = ", ".join(recipe_names(self.recipes))
        group = parser.add_argument_group("recipe", "Options that are given beside a recipe take the place of its own.")
        group.add_argument("--config", metavar="NAME", help=f"a recipe ({names}) or a YAML file")
        group.add_argument("--print_config", action="store_true", help="print what the options resolve to, and exit")
        return parser, [*_words_of(recipe, words, parser, f"the recipe {config}"), *words], method


def _add_method(parser: Parser, method: str) -> None:
    """Add the options of a method."""
    from densepath.methods import METHODS
    from densepath.training.recipes import find_method

    constructor = find_method(method)
    parser.add_options(
        options_of(constructor, skip=[next(iter(inspect.signature(constructor).parameters))], prefix=_METHOD),
        f"method: {method}",
        f"--method NAME takes another one: {', '.join(METHODS)}. With --help it lists the options of that one.",
    )


def _part(option: Option) -> str:
    """The part that an option belongs to, "" for the function itself."""
    return option.key.rpartition(".")[0]


def _take(words: Sequence[str], name: str) -> tuple[str | None, list[str]]:
    """The value that the words give an option, and the other words."""
    value, rest = None, list(words)
    for position, word in reversed(list(enumerate(words))):
        if word == name:
            if position + 1 >= len(rest) or rest[position + 1].startswith("--"):
                raise UserError(f"{name} needs a value")
            value, rest = value or rest[position + 1], rest[:position] + rest[position + 2 :]
        elif word.startswith(f"{name}="):
            value, rest = value or word.partition("=")[2], rest[:position] + rest[position + 1 :]
    return value, rest


def _words_of(recipe: Mapping[str, Any], words: Sequence[str], parser: Parser, name: str = "it") -> Iterator[str]:
    """The options that a recipe sets, as they would be typed."""
    typed = {word.removeprefix("--").partition("=")[0] for word in words}
    for key, value in _flatten(recipe, parser):
        if key not in parser.options:
            hint = close_match(key, list(parser.options))
            raise UserError(f"{name} sets {key}, which is no option; {hint or 'take it out'}")
        if _RIVALS.get(key) not in typed and not (value is None and parser.options[key].default is None):
            yield from parser.options[key].words(value)


def _flatten(recipe: Mapping[str, Any], parser: Parser, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in recipe.items():
        key = prefix + name
        if key == "method":
            continue
        key = "method" if key == "method_options" else key
        is_part = any(option.startswith(f"{key}.") for option in parser.options)
        if is_part and isinstance(value, Mapping):
            yield from _flatten(value, parser, f"{key}.")
        elif not (is_part and value is None):
            yield key, value


def _plain(value: Any) -> Any:
    """A value in the types of YAML."""
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return str(value) if isinstance(value, Path) else value
