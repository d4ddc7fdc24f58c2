"""Options as earlier versions named them, in recipes and in the folders of runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_SHUFFLING = ("moco_v1", "moco_v2", "densecl", "concl", "pcl_v2")  # methods that had batch_norm "shuffled"


def rename_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of pre-training by the names that they have now.

    Up to version 0.1 the sharing of batch statistics was an option of the method.

    Args:
        options: of a recipe, in the plain types of YAML; those of another verb remain as they are.
    """
    method_options = options.get("method_options")
    if not isinstance(method_options, Mapping) or not method_options.keys() & {"batch_norm", "batch_norm_group"}:
        return dict(options)
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


def rename_record(config: Mapping[str, Any]) -> dict[str, Any]:
    """The whole configuration of a run, as :func:`rename_options`, with values of options that there were not."""
    renamed = rename_options(config)
    if renamed.keys() >= {"method", "method_options"}:
        renamed = {"batch_norm": "per_process", "batch_norm_group": 0, **renamed}
    return renamed
