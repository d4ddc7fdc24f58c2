"""Loads the method of a run from its folder."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from densepath.core.errors import UserError
from densepath.methods.base import Method
from densepath.nets.backbones.choose import choose_backbone
from densepath.nets.weights.checks import require_numbers_in
from densepath.nets.weights.pretrained import GIVE_NETWORK
from densepath.runs.checkpoints import CHECKPOINTS, newest_checkpoint
from densepath.runs.folder import read_config
from densepath.sources.pixel_source import PixelSpec
from densepath.training.recipes import find_method

_PREFIX = "method."


def read_run(run: Path) -> dict[str, Any]:
    """The configuration of a pre-training run.

    Raises:
        UserError: the folder does not hold one.
    """
    config = read_config(run)
    if config is None or not config.keys() >= {"method", "backbone", "method_options"}:
        raise UserError(f"{run} is not the folder of a pre-training run; name one")
    return config


def pixels_of(config: Mapping[str, Any]) -> PixelSpec:
    """The specification of the pixels that a run learns from; runs of earlier versions used RGB."""
    return PixelSpec.from_record(config.get("pixels", {}))


def load_run(run: Path, backbone: nn.Module | None = None) -> tuple[Method, dict[str, Any], int]:
    """The method of a run, in its newest state; the run need not be complete.

    Args:
        run: its folder.
        backbone: a network like that of the run, for one that cannot be built from its name; it is copied.

    Returns:
        The method, the run's configuration, and the number of optimizer steps done.

    Raises:
        UserError: there is no such run, it has no checkpoint yet, or its checkpoint and configuration differ.
    """
    config = read_run(run)
    state = newest_checkpoint(run / CHECKPOINTS)
    if state is None:
        raise UserError(f"the run in {run} has no checkpoint yet; continue it with --resume")
    state_dict = state["state_dict"]  # also of the patience of a run with held-out images
    weights = {name.removeprefix(_PREFIX): state_dict[name] for name in state_dict if name.startswith(_PREFIX)}
    method_type = find_method(config["method"])
    try:
        stride = config.get("output_stride", 32)
        given = str(config["backbone"]) if backbone is None else copy.deepcopy(backbone)
        network = choose_backbone(given, pixels_of(config).channels, stride)
    except UserError as error:
        if backbone is not None:
            raise
        raise UserError(f"the backbone of {run} cannot be built from its name ({error}); {GIVE_NETWORK}") from error
    try:
        method = method_type(network, **config["method_options"])
        method.load_state_dict(weights)
    except (RuntimeError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, MemoryError) as error:
        raise UserError(
            f"the checkpoint in {run} does not belong to its config.yaml; restore one of the two, or, if its "
            f"backbone was given as a network: {GIVE_NETWORK}"
            if backbone is None
            else f"the checkpoint in {run} does not fit the backbone {network.name}; pass one like that of the run"
        ) from error
    require_numbers_in(method, f"the checkpoint in {run}")
    return method, config, state["step"]
