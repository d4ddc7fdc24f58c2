"""Old names of options, in recipes and in run folders of earlier versions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from densepath.core.errors import UserError

_SHUFFLING = ("moco_v1", "moco_v2", "densecl", "concl", "pcl_v2")  # methods that had batch_norm "shuffled"


def rename_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of pre-training with their current names.

    Up to version 0.1 the sharing of batch statistics was an option of the method.

    Args:
        options: options of a recipe, in the plain types of YAML; those of other verbs are unchanged.
    """
    method_options = options.get("method_options")
    old = isinstance(method_options, Mapping) and method_options.keys() & {"batch_norm", "batch_norm_group"}
    if not old or _is_own(options):
        return dict(options)
    assert isinstance(method_options, Mapping)
    renamed, method_options = dict(options), dict(method_options)
    over = method_options.pop("batch_norm", None)
    group = method_options.pop("batch_norm_group", None)
    if over is not None:
        renamed["batch_norm"] = "per_process" if over == "shuffled" else over
    if over is not None and options.get("method", "concl") in _SHUFFLING:
        method_options["shuffle"] = over != "per_process"
    if group is not None:
        renamed["batch_norm_group"] = group
    return {**renamed, "method_options": method_options}


# Options of the method up to version 0.1 that are options of the run now: old name -> new name.
MOVED = {
    "labels": "labels",
    "concept_files": "regions",
    "concept_cache": "cache_dir",
    "teacher": "teacher",
    "teacher_weights": "teacher_weights",
    "tokenizer": "tokenizer",
}


def refuse_moved(options: Mapping[str, Any], whose: str) -> dict[str, Any]:
    """Drop old options of the method that are options of the run now, if they have their defaults.

    Raises:
        UserError: one of them is set; the message gives its new name.
    """
    method_options = options.get("method_options")
    if not isinstance(method_options, Mapping) or _is_own(options):
        return dict(options)
    for old, new in MOVED.items():
        if method_options.get(old) not in (None, "", "folders"):
            raise UserError(
                f"{whose} sets method_options.{old}, which is now {new} (--{new}); move it out of method_options"
            )
    return {**options, "method_options": {name: v for name, v in method_options.items() if name not in MOVED}}


def rename_record(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a run with the current names of its options, and values for new ones."""
    renamed = rename_options(config)
    given = renamed.get("method_options")
    if "method" not in renamed or not isinstance(given, Mapping) or _is_own(renamed):
        return renamed
    moved = {new: given[old] or None for old, new in MOVED.items() if old in given}
    kept = {name: value for name, value in given.items() if name not in MOVED}
    return {"batch_norm": "per_process", "batch_norm_group": 0, **renamed, **moved, "method_options": kept}


def _is_own(options: Mapping[str, Any]) -> bool:
    """Whether the method is a user's own, module:Class, whose options may have any names."""
    return ":" in str(options.get("method", ""))
