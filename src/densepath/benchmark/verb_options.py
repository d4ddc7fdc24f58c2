"""The options of a table's runs, checked before anything runs, as the command line checks them."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Literal

from densepath.command import Command
from densepath.core.errors import UserError
from densepath.training.config import PretrainConfig
from densepath.training.recipes import all_options, load_recipe
from densepath.training.resolve import merged, method_of, nested, over_recipe
from densepath.transfer.detection.config import DetectConfig
from densepath.transfer.detection.object_metrics import OBJECT_METRICS
from densepath.transfer.probe.pixels import probe_pixels
from densepath.transfer.sam.sam import sam

Verb = Literal["pretrain", "probe", "detect", "sam"]

# What holds the options of each: a dataclass, or the function itself.
VERBS: dict[str, Callable[..., Any]] = {
    "pretrain": PretrainConfig,
    "probe": probe_pixels,
    "detect": DetectConfig,
    "sam": sam,
}
_AP = ("box_ap", "box_ap50", "box_ap75", "mask_ap", "mask_ap50", "mask_ap75")
METRICS = {
    "probe": ("mean_iou", "iou_object", "iou_rest", "dice", "accuracy"),
    "detect": (*_AP, *OBJECT_METRICS),
    "sam": _AP,
}
# Options that the grid sets for every run.
_SET_BY_GRID = ("data", "out", "seed", "weights", "backbone", "devices", "resume", "evaluate", "workers")


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
    resolved = over_recipe(PretrainConfig, known, merged(options, nested(given))) | {"backbone": backbone}
    all_options(method_of(PretrainConfig, resolved), resolved.get("method_options"))
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
    recipes = {"pretrain": "", "detect": "detect"}.get(verb)
    Command(f"densepath {verb}", VERBS[verb], recipes=recipes).parse_recipe(json.loads(options))
