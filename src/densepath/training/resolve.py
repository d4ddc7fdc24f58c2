"""Resolves a recipe and options to the configuration of a run, in the same way for the command line and Python."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from itertools import groupby
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar, get_type_hints

from densepath.core.errors import UserError
from densepath.core.paths import as_path, check_path
from densepath.options import Option, build, default_of, describe_parameters, options_of
from densepath.runs.old_options import MOVED
from densepath.training.nested_options import METHOD, METHOD_OPTIONS, flat, merged
from densepath.training.recipes import find_method, load_recipe, name_of, own_augment, refuse_rerun

if TYPE_CHECKING:
    from densepath.parser import Parser

Config = TypeVar("Config")
_RENAMED = {f"method.{old}": new for old, new in MOVED.items()}


def resolve(
    schema: type[Config], config: Config | str | Path | None, options: Mapping[str, Any], recipes: str = ""
) -> Config:
    """The configuration of a run.

    Args:
        schema: the dataclass of the configuration.
        config: what the options override: another configuration, the name of a recipe, or the path of a YAML file.
        options: fields of the configuration; a dataclass may be given as a dictionary of some of its fields.
        recipes: the verb of the recipes; "" for pre-training.

    Raises:
        UserError: an unknown recipe, method or option, a value of the wrong type, or a missing option.
    """
    refuse_rerun()
    if isinstance(config, schema):
        recipe: dict[str, Any] = {f.name: getattr(config, f.name) for f in fields(config)}  # type: ignore[arg-type]
        _check_paths(schema, recipe)
    elif config is None or isinstance(config, str | os.PathLike):
        recipe = load_recipe(os.fspath(config), recipes) if config is not None else {}
    else:
        raise UserError(
            f"a recipe is given by its name or path, or as a {schema.__name__}, not as a value of type "
            f"{type(config).__name__}; give options by name: {recipes or 'pretrain'}(**options)"
        )
    _check_paths(schema, options)
    whose = "" if isinstance(config, schema) else f"the recipe {config}"
    whole = over_recipe(schema, recipe, options, whose)
    method = method_of(schema, whole)
    parser = make_parser(schema, f"densepath {recipes or 'pretrain'}", method)
    # Classes and networks have no text form.
    objects = {name: whole.pop(name) for name in ("method", "backbone") if callable(whole.get(name))}
    if "backbone" in objects and recipes:
        raise UserError(
            f"backbone is a network, but what {recipes} trains is built from a name when it is loaded; give a name, or "
            "use the network in densepath.embed or probe"
        )
    names = written(parser, schema, _for_method(recipe, options), options, whose) if whose else {}
    values = check_options(parser, schema, whole, method, names)
    made: Config = build(schema, values | objects)
    return made


def _check_paths(schema: type[Any], options: Mapping[str, Any]) -> None:
    """Check options from Python; in a YAML file, and on the command line, a path may be a number."""
    hints = get_type_hints(schema)
    for name, value in options.items():
        if name in hints and value is not None:
            check_path(name, hints[name], value)


def method_of(schema: Callable[..., Any], options: Mapping[str, Any]) -> Any:
    """The method that the options choose; None for a function that takes no method."""
    if METHOD_OPTIONS not in inspect.signature(schema).parameters:
        return None
    method = options.get("method", default_of(schema, "method"))
    return method if isinstance(method, str) else find_method(method)


def make_parser(
    schema: Callable[..., Any],
    prog: str,
    method: Any,
    positional: tuple[str, ...] = (),
    described: Any = None,
    complete: bool = True,
    shown: Mapping[str, Any] | None = None,
) -> Parser:
    """A parser of the options of a function or a dataclass, and of its method if it takes one.

    Args:
        schema: the function or dataclass.
        prog: the command, for help and errors.
        method: the method whose options are added; None for no method.
        positional: options that are given without their name.
        described: object whose docstring describes the command; ``schema`` by default.
        complete: whether options without a default must be given.
        shown: dotted names of options -> the values that the help shows as defaults.
    """
    from densepath.parser import Parser

    forms = short_forms(schema)
    parser = Parser(prog, described or schema, positional, complete, renamed=_RENAMED, short=forms, shown=shown)
    options = list(options_of(schema, skip=("method", METHOD_OPTIONS) if method else ()))
    help_of = describe_parameters(schema)
    for part, members in groupby(sorted(options, key=_part), key=_part):
        parser.add_options(members, f"{part}: {help_of.get(part, '').rstrip('.')}" if part else None)
    if method:
        constructor = find_method(method)
        backbone = next(iter(inspect.signature(constructor).parameters))
        parser.add_options(
            options_of(constructor, skip=[backbone], prefix=METHOD),
            f"method: {method}",
            "--method NAME chooses another one; together with --help all its options are listed.",
        )
    return parser


def check_options(
    parser: Parser,
    schema: Callable[..., Any],
    options: Mapping[str, Any],
    method: Any,
    names: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Any]:
    """Check options and convert them to their types; dataclasses become dictionaries of their fields.

    Args:
        parser: the parser of these options.
        schema: the function or dataclass that takes them.
        options: the options as in a recipe: values or their text.
        method: the method of the parser.
        names: of the options in a YAML file, see :func:`written`.

    Raises:
        UserError: an option is unknown or missing, or its value has the wrong type.
    """
    check_names(parser, options)
    given = {
        key: value
        for key, value in flat(options, parser)
        if value is not None or not (parser.options[key].default is None or parser.options[key].required)
    }
    typed = parser.check(given, names)
    parameters = inspect.signature(schema).parameters
    values = {name: value for name, value in typed.items() if name in parameters}
    for name in parameters:
        touched = any(key.startswith(f"{name}.") for key in given)
        if isinstance(values.get(name), dict) and default_of(schema, name) is None and not touched:
            values[name] = None
    if method:
        values |= {"method": method, METHOD_OPTIONS: typed.get(METHOD.rstrip("."), {})}
    return values


def check_names(parser: Parser, options: Mapping[str, Any], whose: str = "") -> None:
    """Check that a parser knows all options; ``whose`` names their recipe.

    Raises:
        UserError: an option is unknown.
    """
    for key, value in flat(options, parser):
        if key not in parser.options and any(option.startswith(f"{key}.") for option in parser.options):
            part = METHOD_OPTIONS if key == METHOD.rstrip(".") else key
            raise UserError(_of(whose, f"{part} is {value!r}; give its options by name, as a mapping"))
        if key not in parser.options:
            raise UserError(_of(whose, parser.unknown(key, list(parser.options))))


def written(
    parser: Parser,
    schema: Callable[..., Any],
    recipe: Mapping[str, Any],
    options: Mapping[str, Any] = MappingProxyType({}),
    whose: str = "",
) -> dict[str, str]:
    """Where the options of a recipe are that no others override: dotted name -> the recipe and the name there.

    Args:
        parser: the parser of these options.
        schema: the function or dataclass that takes them.
        recipe: the options of a YAML file.
        options: those that override them.
        whose: names the recipe; "" if the caller does.

    Raises:
        UserError: an option of the recipe is unknown.
    """
    short = short_forms(schema)
    full = _in_full(_mapped(recipe), short, whose)
    check_names(parser, full, whose)
    over = dict(flat(_in_full(_mapped(options), short), parser))
    forms = {name: form for form, name in short.items() if form in recipe}
    keys = [key for key, _ in flat(full, parser) if key not in over]
    inside = {key: re.sub(f"^{re.escape(METHOD)}", f"{METHOD_OPTIONS}.", key) for key in keys}
    return {key: _of(whose, forms.get(key, name)) for key, name in inside.items()}


def _of(whose: str, message: str) -> str:
    return f"{whose}: {message}" if whose else message


def short_forms(schema: Callable[..., Any]) -> dict[str, str]:
    """The short forms of options of a function or a dataclass: ``lr`` where it has an optimizer."""
    parameters = inspect.signature(schema).parameters
    return {"lr": "optimizer.lr"} if "optimizer" in parameters and "lr" not in parameters else {}


def over_recipe(
    schema: Callable[..., Any], recipe: Mapping[str, Any], options: Mapping[str, Any], whose: str = ""
) -> dict[str, Any]:
    """A recipe, overridden by options: parts such as ``optimizer`` field by field, the length of a run as a whole.

    The recipe's method options are dropped if another method is chosen. If only the options set ``augment``, the
    remaining augmentation is the method's own. ``whose`` names the recipe in messages.
    """
    short = short_forms(schema)
    recipe, options = _in_full(_mapped(recipe), short, whose), _in_full(_mapped(options), short)
    recipe = _for_method(recipe, options)
    method = method_of(schema, {**recipe, **options})
    if method is not None and not recipe.get("augment") and options.get("augment"):
        recipe["augment"] = own_augment(method)
    return merged(recipe, options)


def _for_method(recipe: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe without its method options if other options choose another method."""
    other = "method" in recipe.keys() & options.keys() and name_of(options["method"]) != name_of(recipe["method"])
    return {name: value for name, value in recipe.items() if not (other and name == METHOD_OPTIONS)}


def _in_full(options: dict[str, Any], short: Mapping[str, str], whose: str = "") -> dict[str, Any]:
    """Replace short forms of options by the full names; ``whose`` names their recipe.

    Raises:
        UserError: a short form and its full name are both given.
    """
    for form in short.keys() & options.keys():
        part, _, name = short[form].partition(".")
        if not isinstance(options.get(part), Mapping | None):
            raise UserError(_of(whose, f"{part} is {options[part]!r}; give its options by name, as a mapping"))
        if name in (options.get(part) or {}):
            raise UserError(_of(whose, f"{form} and {short[form]} are the same option; give it once"))
        options[part] = {**(options.get(part) or {}), name: options.pop(form)}
    return options


def _mapped(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options, with dataclasses as dictionaries of their fields, and what stands for a path as a path."""

    def plain(value: Any) -> Any:
        if isinstance(value, os.PathLike):  # also the result of another verb
            return as_path(value)
        mapped = is_dataclass(value) and not isinstance(value, type)
        return {f.name: getattr(value, f.name) for f in fields(value)} if mapped else value

    return {name: plain(value) for name, value in options.items()}


def _part(option: Option) -> str:
    """The part of an option; "" for an option of the function itself."""
    return option.key.rpartition(".")[0]
