"""From a run to a file of weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from densepath.core.errors import UserError
from densepath.nets.backbones import Backbone, build_backbone
from densepath.nets.weights import save_backbone
from densepath.training.checkpoints import CHECKPOINTS, newest_checkpoint
from densepath.training.recipes import find_method
from densepath.training.run_folder import read_config

EXPORTED = Path("exported") / "backbone.safetensors"
Layout = Literal["timm", "torchvision", "detectron2"]
_PREFIX = "method."


def export(run: str | Path, to: str | Path | None = None, layout: Layout = "timm") -> Path:
    """Write the backbone of a run, in its newest state, for another library.

    Args:
        run: a run folder of pre-training; the run need not be complete.
        to: the file to write; by default it goes to ``exported/`` in the run folder.
        layout: "timm", "torchvision" or "detectron2".

    Returns:
        The file.

    Raises:
        UserError: there is no such run, it has no checkpoint yet, or the layout does not suit its backbone.
    """
    run = Path(run)
    config = read_config(run)
    if config is None or not config.keys() >= {"method", "backbone", "method_options"}:
        raise UserError(f"{run} is not the folder of a pre-training run; name one")
    state = newest_checkpoint(run / CHECKPOINTS)
    if state is None:
        raise UserError(f"the run in {run} has no checkpoint yet; go on with it by --resume")
    weights = {name.removeprefix(_PREFIX): value for name, value in state["state_dict"].items()}
    method_type = find_method(config["method"])
    try:
        method = method_type(build_backbone(str(config["backbone"])), **config["method_options"])
        method.load_state_dict(weights)
    except (RuntimeError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, MemoryError) as error:
        raise UserError(
            f"the checkpoint in {run} does not belong to its config.yaml; restore one of the two"
        ) from error
    suffix = {"timm": "", "torchvision": "_torchvision", "detectron2": "_detectron2"}.get(layout, "")
    kind = ".pth" if layout == "detectron2" else ".safetensors"
    path = Path(to) if to is not None else run / "exported" / f"backbone{suffix}{kind}"
    export_backbone(path, method.backbone_to_keep(), layout, config, state["step"])
    return path


def export_backbone(path: Path, backbone: Backbone, layout: str, config: Mapping[str, Any], steps: int) -> None:
    """Write a backbone with where it comes from.

    Args:
        path: the file.
        backbone: what is written.
        layout: of the names in the file.
        config: the run's configuration.
        steps: optimizer steps that it was trained for.
    """
    metadata = {"method": config["method"], "steps": str(steps), "config": json.dumps(config)}
    save_backbone(path, backbone, layout, metadata)
