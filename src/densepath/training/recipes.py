"""Recipes: the options of a run as YAML, from the package or the user."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from densepath.core.errors import GUARD, UserError, suggest
from densepath.core.records import CONFIG, RECORD_HEAD, TRAIN_LOG
from densepath.core.system import program
from densepath.core.yaml_files import load_yaml, read_text
from densepath.methods import METHODS
from densepath.options import as_yaml
from densepath.runs.old_options import refuse_moved, rename_options

if TYPE_CHECKING:
    from densepath.methods import Method

_MAIN = "__main__"
_importing: list[str] = []  # modules of methods
# Entries of the config.yaml of a run that are not options: the specification of its pixels.
_NOTED = {
    "": ("pixels",),
    "classify": ("pixels",),
    "segment": ("pixels",),
    "detect": ("mean", "std", "window", "bits"),
}


def recipe_names(verb: str = "") -> list[str]:
    """The names of the package's recipes, for pre-training or for another verb."""
    entries = _folder(verb).iterdir()
    return sorted(entry.name.removesuffix(".yaml") for entry in entries if entry.name.endswith(".yaml"))


def load_recipe(name: str | Path, verb: str = "") -> dict[str, Any]:
    """The options that a recipe sets, by their names in :func:`densepath.pretrain`, in the plain types of YAML.

    ``out`` in the ``config.yaml`` of a run that has moved is the folder where it lies now: it is resumed there.

    Args:
        name: a recipe of the package, or the path of a YAML file, e.g. a run's ``config.yaml``.
        verb: "detect" for a recipe of :func:`densepath.detect`.

    Raises:
        UserError: there is no such recipe, it is not a YAML mapping, or of a run of another verb.
    """
    text = _read(str(name), verb)
    recipe = load_yaml(text, f"the recipe {name}")
    if isinstance(recipe, dict) and (others := [key for key in recipe if not isinstance(key, str)]):
        raise UserError(f"the recipe {name} has the key {others[0]!r}, which is not the name of an option; remove it")
    if not isinstance(recipe, dict):
        raise UserError(f"the recipe {name} holds no options; write lines such as 'epochs: 200'")
    if text.startswith(RECORD_HEAD) and ("method" in recipe) == bool(verb):  # only those of pre-training have a method
        wanted = f"that of a run of {verb}" if verb else "that of a pre-training run"
        raise UserError(f"{name} is the configuration of a run of another verb; give {wanted}, or a recipe")
    if not isinstance(recipe.get("method", ""), str):
        raise UserError(f"the recipe {name}: method takes the name of a method, not {as_yaml(recipe['method'])}")
    if "out" in recipe and text.startswith(RECORD_HEAD):
        recipe["out"] = _folder_of_run(Path(name), str(recipe["out"]))
    options = recipe if verb else refuse_moved(rename_options(recipe), f"the recipe {name}")
    return {option: value for option, value in options.items() if option not in _NOTED[verb]}


def own_augment(method: Any) -> dict[str, Any]:
    """The augmentation options in which all views of a method differ from the defaults of :class:`Augment`.

    Local crops, which are smaller than other views, do not count: their scale follows from that of the others.

    Single ``--augment`` options change these. Without them, a run of MAE with ``--augment.scale`` would also get the
    color jitter of MoCo-v2.

    Returns:
        Options in the plain types of YAML.

    Raises:
        UserError: there is no such method.
    """
    # Imported here, because they need torch.
    from densepath.views.augment import Augment
    from densepath.views.declarations import RandomView

    views = [view for view in find_method(method).views().values() if isinstance(view, RandomView) and view.size == 1]
    options = [asdict(augment) for view in views if (augment := Augment.of_view(view)) is not None]
    if not options:
        return {}
    first, *others = options
    common = asdict(Augment())
    own = {name: value for name, value in first.items() if value != common[name]}
    agreed = {name: value for name, value in own.items() if all(view[name] == value for view in others)}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in agreed.items()}


def find_method(method: Any) -> type[Method]:
    """Find a method by its name, by "module:Class", or by its class.

    The module is any that Python can import, a file in the current folder, or the script or notebook that runs.

    Raises:
        UserError: there is no such method, or its module cannot be imported.
    """
    from densepath.methods.base import Method

    if isinstance(method, type) and issubclass(method, Method):
        return method
    if isinstance(method, str) and method in METHODS:
        return METHODS[method]
    if isinstance(method, Method):
        raise UserError(f"method is an object of {type(method).__name__}; give its class, and method_options")
    if not isinstance(method, str) or ":" not in method:
        raise UserError(f"no method is called {method!r}; {suggest(str(method), METHODS)}, or give module:Class")
    place, _, name = method.partition(":")
    main = sys.modules.get("__main__")
    module = main if place in (_MAIN, _script()) and hasattr(main, name) else _import_here(place, method)
    found = getattr(module, name, None)
    if not (isinstance(found, type) and issubclass(found, Method)):
        if place == _MAIN:
            raise UserError(
                f"the method {name} was defined in a notebook or an interactive session, and here it is not; put it in "
                f"a file of its own, such as methods.py, and write methods:{name} into the run's config.yaml"
            )
        own = [n for n, c in vars(module).items() if isinstance(c, type) and issubclass(c, Method) and c is not Method]
        raise UserError(f"{place} has no method {name!r}; {suggest(name, own) if own else 'derive one from Method'}")
    missing = [n for n in ("views", "forward") if getattr(found, n) is getattr(Method, n)]
    if missing:
        raise UserError(f"the method {method} does not define {' and '.join(missing)}; add that (see Method)")
    return found


def name_of(method: Any) -> str:
    """The name by which :func:`find_method` finds a method; a run records this name."""
    if isinstance(method, str):
        return method
    module = find_method(method).__module__
    package, _, name = module.rpartition(".")
    if package == METHODS.__module__ and name in METHODS and METHODS[name] is method:
        return name
    if module == _MAIN:
        module = _script() or module  # as other processes import it
    return f"{module}:{method.__qualname__}"


def is_found(method: type[Method]) -> bool:
    """Whether other processes find a method by its name, without running a script again."""
    try:
        return method.__module__ != _MAIN and find_method(name_of(method)) is method
    except UserError:
        return False


def _script() -> str:
    """The module that other processes import the running script as; empty in a notebook, and for one from stdin."""
    file = program()
    return file.stem if file else ""


def refuse_rerun() -> None:
    """Check that no script is running again, only to be imported.

    Raises:
        UserError: one is.
    """
    from multiprocessing import current_process  # slow, and not needed for help

    if _importing or getattr(current_process(), "_inheriting", False):
        raise UserError(f"the script runs again when it is imported; {GUARD}, or its method in a file of its own")


def _import_here(place: str, method: str) -> Any:
    """Import a module that Python finds, or a file in the current folder."""
    here = os.getcwd()
    sys.path.insert(0, here)
    _importing.append(place)
    try:
        return import_module(place)
    except UserError as error:
        raise UserError(f"the method {method} cannot be imported: {error}") from error
    except Exception as error:  # whatever a user's file raises
        missing = isinstance(error, ModuleNotFoundError) and error.name == place.split(".")[0]
        why = f"there is no {place}.py in {here}" if missing else f"{type(error).__name__}: {error}"
        raise UserError(f"the method {method} cannot be imported ({why}); give module:Class") from error
    finally:
        _importing.pop()
        sys.path.remove(here)


def all_options(method: Any, options: Mapping[str, Any] | None) -> dict[str, Any]:
    """All hyper-parameters of a method: its defaults, overridden by ``options``.

    Raises:
        UserError: one of them is not an option of the method.
    """
    parameters = list(inspect.signature(find_method(method)).parameters.values())[1:]  # the first is the backbone
    resolved = {parameter.name: parameter.default for parameter in parameters}
    for option, value in (options or {}).items():
        if option not in resolved:
            raise UserError(f"the method {name_of(method)} has no option {option!r}; {suggest(option, resolved)}")
        resolved[option] = value
    return resolved


def _folder_of_run(config: Path, recorded: str) -> str:
    """Where the run of a configuration lies: as recorded, unless it has moved, or is named from another folder."""
    folder, same = config.parent, False
    with suppress(OSError):
        same = os.path.samefile(folder, recorded)
    is_run = config.name == CONFIG and (folder / TRAIN_LOG).is_file()
    return str(folder) if is_run and not same else recorded


def _folder(verb: str) -> Any:
    return files("densepath") / "recipes" / verb


def _read(name: str, verb: str) -> str:
    path = Path(name)
    if path.is_file() or (path.suffix in (".yaml", ".yml") and not path.is_dir()):
        return read_text(path, f"the recipe {name}")
    if (path / CONFIG).is_file():
        raise UserError(f"{name} is the folder of a run; give its recipe, {path / CONFIG}")
    if path.exists():
        what = "a folder" if path.is_dir() else "not a file of text"
        raise UserError(f"{name} is {what}, not a recipe; give the name of a recipe or a YAML file")
    if name not in recipe_names(verb):
        raise UserError(f"no recipe is called {name!r}; {suggest(name, recipe_names(verb))}")
    text: str = (_folder(verb) / f"{name}.yaml").read_text(encoding="utf-8")
    return text
