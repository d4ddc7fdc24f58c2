"""Exports the weights of a run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from densepath.core.files import atomic_write
from densepath.nets.backbones import Backbone
from densepath.nets.weights import FORMAT_VERSION, pixel_notes, save_backbone, write_tensors
from densepath.training.load_run import load_run, pixels_of

EXPORTED = Path("exported") / "backbone.safetensors"
Layout = Literal["timm", "torchvision", "detectron2"]


def export(run: str | Path, out: str | Path | None = None, layout: Layout = "timm") -> Path:
    """Write the backbone of a run, in its newest state, for another library.

    Args:
        run: the folder of a pre-training run; the run need not be complete.
        out: the file to write; by default it goes to ``exported/`` in the run folder.
        layout: "timm", "torchvision" or "detectron2".

    Returns:
        The file.

    Raises:
        UserError: there is no such run, it has no checkpoint yet, or the layout does not fit its backbone.
    """
    run = Path(run)
    method, config, steps = load_run(run)
    suffix = {"timm": "", "torchvision": "_torchvision", "detectron2": "_detectron2"}.get(layout, "")
    kind = ".pth" if layout == "detectron2" else ".safetensors"
    path = Path(out) if out is not None else run / "exported" / f"backbone{suffix}{kind}"
    export_backbone(path, method.exported_backbone(), layout, config, steps)
    return path


def export_backbone(path: Path, backbone: Backbone, layout: str, config: Mapping[str, Any], steps: int) -> None:
    """Write a backbone, with metadata of its run.

    Args:
        path: the file.
        backbone: the backbone.
        layout: the convention of the names in the file.
        config: the run's configuration.
        steps: number of optimizer steps that it was trained for.
    """
    metadata = {"method": config["method"], "steps": str(steps), "config": json.dumps(config)}
    metadata |= pixel_notes(pixels_of(config))
    save_backbone(path, backbone, layout, metadata)


def export_parts(
    folder: Path, parts: Mapping[str, Mapping[str, Tensor]], config: Mapping[str, Any], steps: int
) -> None:
    """Write the exported parts of a method besides its backbone: a safetensors file for each, with metadata of its run.

    Args:
        folder: the folder of the files.
        parts: name -> tensors.
        config: the run's configuration.
        steps: number of optimizer steps that they were trained for.
    """
    notes = {"format": "pt", "format_version": FORMAT_VERSION, "method": str(config["method"]), "steps": str(steps)}
    notes |= {"backbone": str(config["backbone"]), "config": json.dumps(config)}
    notes |= pixel_notes(pixels_of(config))
    for name, state in parts.items():
        plain = {key: value.detach().cpu().clone(memory_format=torch.contiguous_format) for key, value in state.items()}
        with atomic_write(folder / f"{name}.safetensors") as temporary:
            write_tensors(plain, temporary, notes)
