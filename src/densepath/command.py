"""One verb of the command line: its options, its recipe, and the function that it calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import yaml

from densepath.core.errors import UserError, counted, first_few
from densepath.core.plain import plain
from densepath.options import EVERYDAY, Option, build, describe_parameters, is_required
from densepath.parser import Parser
from densepath.training.nested_options import flat, nested
from densepath.training.recipes import load_recipe, recipe_names
from densepath.training.resolve import (
    check_options,
    make_parser,
    method_of,
    over_recipe,
    short_forms,
    written,
)

_PRINT = "--print_config"
_HELP = ("-h", "--help")
_FEW = 17  # options that are all shown at once


class Command:
    """A function that is called from the command line.

    Its options are its parameters, or the fields of a dataclass that it takes instead. ``--config`` names a recipe that
    they override. If there are ``method`` and ``method_options``, as in pre-training, ``--method`` chooses a method,
    and the parameters of its constructor are options such as ``--method.num_concepts 8``.

    Args:
        prog: the command, for help and errors.
        function: the function to call.
        positional: parameters that are given without their name.
        schema: the dataclass of the options; by default the options are the parameters of the function.
        recipes: the verb whose recipes it takes, "" for pre-training; None for a function without recipes.
        renamed: old name of an option -> its current name, for the error message.
    """

    def __init__(
        self,
        prog: str,
        function: Callable[..., Any],
        positional: Sequence[str] = (),
        schema: Callable[..., Any] | None = None,
        recipes: str | None = None,
        renamed: Mapping[str, str] | None = None,
    ) -> None:
        self.prog = prog
        self.function = function
        self.positional = tuple(positional)
        self.schema = schema or function
        self.recipes = recipes
        self.renamed = dict(renamed or {})
        self._short = short_forms(self.schema)

    def run(self, words: Sequence[str]) -> Any:
        """Call the function and return what it returns."""
        made = build(self.schema, self.parse(words))
        return made if self.schema is self.function else self.function(made)

    def help(self, words: Sequence[str]) -> str:
        """The everyday options, or after ``--help all`` all of them, with the values of the recipe as defaults."""
        everything = any(pair[0] in _HELP and pair[1] == "all" for pair in pairwise(words))
        recipe, whose, method, _ = self._recipe([word for word in words if word not in (*_HELP, _PRINT)])
        parser = self._parser(method)
        written(parser, self.schema, recipe, whose=whose)
        shown = dict(flat(over_recipe(self.schema, recipe, {}, whose), parser)) if recipe else {}
        if len(parser.options) > _FEW and not everything:
            return self._brief(self.options(method), method, shown)
        return self._parser(method, shown=shown).format_help()

    def options(self, method: Any = None) -> dict[str, Option]:
        """All options, also those that choose a recipe and a method, and short forms."""
        known = self._parser(method or method_of(self.schema, {})).options
        known = known | {form: replace(known[name], key=form) for form, name in self._short.items()}
        if method:
            known["method"] = Option("method", str, method, describe_parameters(self.schema)["method"])
        if self.recipes is not None:
            names = recipe_names(self.recipes)
            few = names if len(names) <= 5 else [name for name in names if name.endswith("_small")]
            some = first_few(few, 5)
            known["config"] = Option("config", str, None, f"a recipe ({some}), or a YAML file")
        return known

    def _brief(self, known: Mapping[str, Option], method: Any, shown: Mapping[str, Any]) -> str:
        """The help of the everyday options."""
        shown = {**shown, **{form: shown[name] for form, name in self._short.items() if name in shown}}
        brief = Parser(self.prog, self.function, self.positional, shown=shown)
        needed = [name for name, option in known.items() if option.required and name not in EVERYDAY]
        chosen = [known[name] for name in (*needed, *EVERYDAY) if name in known]
        brief.add_options(chosen, "everyday options")
        of_method = f", also those of the method {method}" if method else ""
        brief.epilog = f"{counted(len(known) - len(chosen), 'more option')}{of_method}: {self.prog} --help all"
        return brief.format_help()

    def configuration(self, words: Sequence[str]) -> str:
        """The resolved options, as YAML for ``--config``.

        Raises:
            UserError: an option is invalid.
        """
        values = self.parse([word for word in words if word != _PRINT], complete=False)
        missing = [name for name, value in values.items() if value is None and is_required(self.schema, name)]
        if self.schema is not self.function:  # a dataclass, which checks its values
            build(self.schema, values | dict.fromkeys(missing, "unknown"))
        return yaml.safe_dump(plain({n: v for n, v in values.items() if n not in missing}), sort_keys=False)

    def parse(self, words: Sequence[str], complete: bool = True) -> dict[str, Any]:
        """The arguments of the call; dataclasses are still dictionaries of their fields.

        Args:
            words: the words of the command line.
            complete: whether options without a default must be given.

        Raises:
            UserError: an option of the command line or of its recipe is invalid.
        """
        recipe, whose, method, rest = self._recipe(words)
        parser = self._parser(method, complete)
        typed = nested(parser.read(rest)) | ({"method": method} if method else {})
        names = written(parser, self.schema, recipe, typed, whose)
        whole = over_recipe(self.schema, recipe, typed, whose)
        return check_options(parser, self.schema, whole, method, names)

    def parse_recipe(self, recipe: Mapping[str, Any]) -> dict[str, Any]:
        """Check options that are given as in a recipe; any may be missing.

        Raises:
            UserError: an option is unknown, or its value has the wrong type.
        """
        method = method_of(self.schema, recipe)
        parser = self._parser(method, complete=False)
        return check_options(parser, self.schema, recipe, method, written(parser, self.schema, recipe))

    def _recipe(self, words: Sequence[str]) -> tuple[dict[str, Any], str, Any, list[str]]:
        """The recipe, its name in messages, the method, and the other words."""
        if self.recipes is None:
            return {}, "", None, list(words)
        config, rest = _take(words, "--config")
        recipe = load_recipe(config, self.recipes) if config else {}
        method = method_of(self.schema, recipe)
        if method:
            chosen, rest = _take(rest, "--method")
            if chosen and chosen != method:
                recipe.pop("method_options", None)
            method = chosen or method
        return recipe, f"the recipe {config}", method, rest

    def _parser(self, method: Any, complete: bool = True, shown: Mapping[str, Any] | None = None) -> Parser:
        parser = make_parser(self.schema, self.prog, method, self.positional, self.function, complete, shown)
        parser.renamed |= self.renamed
        if self.recipes is not None:
            parser.read_before = ("--config", *(["--method"] if method else []))
            names = ", ".join(recipe_names(self.recipes))
            group = parser.add_argument_group("recipe", "Options that are given together with a recipe override it.")
            group.add_argument("--config", metavar="NAME", help=f"a recipe ({names}) or a YAML file")
            group.add_argument(_PRINT, action="store_true", help="print the resolved options as a recipe, and exit")
        return parser


def _take(words: Sequence[str], name: str) -> tuple[str | None, list[str]]:
    """The value of an option in the words, and the other words."""
    value, rest = None, list(words)
    for position, word in reversed(list(enumerate(words))):
        if word == name:
            if not (rest[position + 1 : position + 2] or [""])[0] or rest[position + 1].startswith("--"):
                raise UserError(f"{name} needs a value")
            value, rest = value or rest[position + 1], rest[:position] + rest[position + 2 :]
        elif word.startswith(f"{name}="):
            if not word.partition("=")[2]:
                raise UserError(f"{name} needs a value")
            value, rest = value or word.partition("=")[2], rest[:position] + rest[position + 1 :]
    return value, rest
