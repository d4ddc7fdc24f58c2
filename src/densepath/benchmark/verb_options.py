"""The options of a table's runs, checked before anything runs, as the command line checks them."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Literal

from densepath.command import Command
from densepath.core.errors import UserError
from densepath.training.pretrain import pretrain
from densepath.training.recipes import all_options, load_recipe, own_augment, typed_options
from densepath.transfer.detection.detect import detect
from densepath.transfer.probe.probe import probe
from densepath.transfer.sam.sam import sam

Verb = Literal["pretrain", "probe", "detect", "sam"]

VERBS: dict[str, Callable[..., Any]] = {"pretrain": pretrain, "probe": probe, "detect": detect, "sam": sam}
_AP = ("box_ap", "box_ap50", "box_ap75", "mask_ap", "mask_ap50", "mask_ap75")
METRICS = {"probe": ("mean_iou", "iou_object", "iou_rest", "dice", "accuracy"), "detect": _AP, "sam": _AP}
# Options that the grid sets for every run.
_SET_BY_GRID = (
    *("data", "out", "seed", "weights", "backbone", "devices", "resume", "evaluate", "workers"),
    *("probe", "draw"),  # functions
)


@cache
def free_options(verb: str) -> tuple[str, ...]:
    """The options of a verb that a table may set; the grid sets the others for every run."""
    return tuple(name for name in inspect.signature(VERBS[verb]).parameters if name not in _SET_BY_GRID)


def pretraining_options(
    recipe: str, options: Mapping[str, Any], backbone: str, given: Mapping[str, Any]
) -> dict[str, Any]:
    """All options of a pre-training, checked as far as possible before it starts.

    Args:
        recipe: its name or file; options that the grid sets are ignored, as in the configuration of an earlier run.
        options: override those of the recipe.
        backbone: a timm name; the recipe must not name another one.
        given: dotted option -> value that overrides the others.

    Raises:
        UserError: there is no such recipe or option, or a value is invalid.
    """
    dropped = set(_SET_BY_GRID) - {"weights", "backbone"}
    known = {name: value for name, value in load_recipe(recipe).items() if name not in dropped}
    if known.get("backbone", backbone) != backbone:
        raise UserError(f"its recipe has the backbone {known['backbone']}, but the row has {backbone}; make them equal")
    resolved = merged(known, options) | {"backbone": backbone}
    for place, value in given.items():
        put(resolved, place, value)
    method = str(resolved.get("method", inspect.signature(pretrain).parameters["method"].default))
    if isinstance(resolved.get("augment"), Mapping) and not known.get("augment"):
        resolved["augment"] = own_augment(method) | dict(resolved["augment"])
    all_options(method, resolved.get("method_options"))
    typed_options(resolved)
    check_values("pretrain", resolved)
    return resolved


def put(options: dict[str, Any], place: str, value: Any) -> None:
    """Set a dotted option."""
    *parts, last = place.split(".")
    for part in parts:
        options[part] = dict(options.get(part) or {})
        options = options[part]
    options[last] = value


def check_values(verb: str, options: Mapping[str, Any]) -> None:
    """Check that the command line accepts options and their values.

    Args:
        verb: one of ``VERBS``.
        options: options as in a recipe.

    Raises:
        UserError: an option is unknown, or its value has the wrong type.
    """
    _check(verb, json.dumps(options, default=str))


@cache
def _check(verb: str, options: str) -> None:
    """Cached: many tasks and rows of a table have equal options."""
    command = Command(f"densepath {verb}", VERBS[verb], recipes="detect" if verb == "detect" else "")
    command.parse_recipe(json.loads(options))


def merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Options with others on top, nested mappings merged key by key; only one of epochs and max_steps is kept."""
    result = dict(under)
    for one, other in (("epochs", "max_steps"), ("max_steps", "epochs")):
        if over.get(one) is not None:
            result.pop(other, None)
    for name, value in over.items():
        both = isinstance(value, Mapping) and isinstance(result.get(name), Mapping)
        result[name] = merged(result[name], value) if both else value
    return result
