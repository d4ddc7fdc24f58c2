"""Recipes: the options of a run as YAML, those that come with the package or a user's own."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import asdict, fields
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from densepath.core.errors import UserError, suggest
from densepath.methods import METHODS, Method
from densepath.runs.old_options import rename_options
from densepath.training.optimizers import Optimizer
from densepath.views.augment import Augment, augment_from

# What the config.yaml of a run holds beside options: what its pixels are, as its images or its weights say.
_NOTED = {"": ("pixels",), "detect": ("mean", "std", "window")}


def recipe_names(verb: str = "") -> list[str]:
    """The recipes that come with the package: for pre-training, or for the verb that is named."""
    entries = _folder(verb).iterdir()
    return sorted(entry.name.removesuffix(".yaml") for entry in entries if entry.name.endswith(".yaml"))


def load_recipe(name: str | Path, verb: str = "") -> dict[str, Any]:
    """The options that a recipe sets, by the names of :func:`densepath.pretrain`, in the plain types of YAML.

    Args:
        name: a recipe of the package, or the path of a YAML file, a run's ``config.yaml`` for instance.
        verb: "detect" for a recipe of :func:`densepath.detect`.

    Raises:
        UserError: there is no such recipe, or it is no YAML mapping.
    """
    text = _read(str(name), verb)
    try:
        recipe = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"the recipe {name} is not valid YAML ({' '.join(str(error).split())}); mend it") from None
    if not isinstance(recipe, dict) or not all(isinstance(key, str) for key in recipe):
        raise UserError(f"the recipe {name} holds no options; write lines such as 'epochs: 200'")
    return {option: value for option, value in rename_options(recipe).items() if option not in _NOTED[verb]}


def own_augment(method: str) -> dict[str, Any]:
    """What all augmented views of a method have in other ways than :class:`Augment`: what single options change.

    Without it, a run of MAE with ``--augment.scale`` would have the color jitter of MoCo-v2, too.

    Returns:
        Options in the plain types of YAML.

    Raises:
        UserError: there is no such method.
    """
    first, *others = [asdict(view) for view in find_method(method).views().values() if isinstance(view, Augment)]
    common = asdict(Augment())
    own = {name: value for name, value in first.items() if value != common[name]}
    agreed = {name: value for name, value in own.items() if all(view[name] == value for view in others)}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in agreed.items()}


def typed_options(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The same options as :func:`densepath.pretrain` takes them: the optimizer and the augmentation as their own types.

    Raises:
        UserError: they name something that does not exist.
    """
    options = dict(recipe)
    if isinstance(options.get("optimizer"), Mapping):
        options["optimizer"] = _optimizer_from(options["optimizer"])
    if isinstance(options.get("augment"), Mapping):
        options["augment"] = augment_from(dict(options["augment"]))
    for name, kind in (("optimizer", Optimizer), ("augment", Augment)):
        if options.get(name) is not None and not isinstance(options[name], kind):
            raise UserError(f"{name} is {options[name]!r}; give its options by name")
    return options


def find_method(name: str) -> type[Method]:
    """A method by its name.

    Raises:
        UserError: there is none of that name.
    """
    if not isinstance(name, str) or name not in METHODS:
        raise UserError(f"no method is called {name!r}; {suggest(str(name), METHODS)}")
    return METHODS[name]


def all_options(name: str, options: Mapping[str, Any] | None) -> dict[str, Any]:
    """All hyper-parameters of a method: its defaults, and over them those given.

    Raises:
        UserError: one of them is none of the method's.
    """
    parameters = list(inspect.signature(find_method(name)).parameters.values())[1:]  # the first is the backbone
    resolved = {parameter.name: parameter.default for parameter in parameters}
    for option, value in (options or {}).items():
        if option not in resolved:
            raise UserError(f"the method {name} has no option {option!r}; {suggest(option, resolved)}")
        resolved[option] = value
    return resolved


def _folder(verb: str) -> Any:
    return files("densepath") / "recipes" / verb


def _read(name: str, verb: str) -> str:
    path = Path(name)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        try:
            return path.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"the recipe {name} cannot be read ({type(error).__name__}); check its path") from None
    if name not in recipe_names(verb):
        raise UserError(f"no recipe is called {name!r}; {suggest(name, recipe_names(verb))}")
    text: str = (_folder(verb) / f"{name}.yaml").read_text()
    return text


def _optimizer_from(options: Mapping[str, Any]) -> Optimizer:
    known = [field.name for field in fields(Optimizer)]
    for option in options:
        if option not in known:
            raise UserError(f"the optimizer has no option {option!r}; {suggest(option, known)}")
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in options.items()
    }
    try:
        return Optimizer(**values)
    except TypeError as error:
        raise UserError(f"an option of the optimizer has a value of the wrong kind ({error}); mend it") from None
