"""Exports the weights of a run, or of a file of another project."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from densepath.core.errors import UserError
from densepath.core.files import atomic_write
from densepath.core.keywords import RANDOM, is_on_disk, literal
from densepath.nets.backbones import Backbone
from densepath.nets.weights import FORMAT_VERSION, pixel_notes, save_backbone, write_tensors
from densepath.nets.weights.backbone_weights import TRAINED
from densepath.nets.weights.published import is_published
from densepath.nets.weights.trained_on import slide_notes, slides_of_run
from densepath.nets.weights.volume_layouts import VOLUME_LAYOUTS
from densepath.runs.checkpoints import CHECKPOINTS, newest_checkpoint
from densepath.runs.closing import draw_safely
from densepath.runs.folder import AT_STEP, EXPORTED, read_config
from densepath.training.export_file import export_file
from densepath.training.load_run import load_run, pixels_of
from densepath.training.model_card import bare, recorded_scores, write_card
from densepath.training.saver import is_complete

Layout = Literal["timm", "torchvision", "detectron2", "models_genesis", "monai", "nnunet", "tensors"]


def export(
    run: str | Path,
    out: str | Path | None = None,
    layout: Layout | None = None,
    *,
    backbone: str | nn.Module | None = None,
    prefix: str = "",
    licence: str | None = None,
) -> Path:
    """Write the backbone of a run, in its newest state, or of any file of weights. See ``transfer.export``."""
    run = literal(run) if str(run) == RANDOM else run  # a folder: there is nothing to export of random weights
    folder, prefix = Path(run), prefix.removesuffix(".") + "." if prefix else ""
    is_folder = is_on_disk(run) and folder.is_dir()
    config = read_config(folder) if is_folder else None
    if config is None and not is_published(run) and is_folder:
        raise UserError(f"{run} is not the folder of a pre-training run, or of a published model; name one, or a file")
    scores = recorded_scores(folder) if config is not None else {}
    if config is None or "method" not in config:
        source = run if config is None else next((folder / name for name in TRAINED if (folder / name).is_file()), None)
        if source is None:
            raise UserError(
                f"{run} has no {' or '.join(TRAINED)}; export takes runs of pretrain, and of classify, segment and "
                "detect once they are done"
            )
        if config is not None and out is None:
            raise UserError(f"{run} is not a run of pretrain; name the file to write with --out")
        target, card = None if out is None else Path(out), {"scores": scores, "licence": licence}
        return export_file(source, target, layout, backbone, prefix, card)
    if layout == "tensors" or isinstance(backbone, str) or prefix:
        raise UserError(
            "the layout tensors, the name of a backbone and prefix are for files of other projects; leave them out"
        )
    method, config, steps = load_run(folder, backbone)
    layout = layout or "timm"
    suffix = "" if layout == "timm" else f"_{layout}"
    kind = ".pth" if layout in ("detectron2", *VOLUME_LAYOUTS) else ".safetensors"
    state = newest_checkpoint(folder / CHECKPOINTS) or {}
    complete = is_complete(state, config)
    name = f"{EXPORTED.stem if complete else f'{AT_STEP}{steps}'}{suffix}{kind}"
    path = Path(out) if out is not None else folder / EXPORTED.parent / name
    if not complete and path.resolve() == (folder / EXPORTED).resolve():
        raise UserError(f"the run in {run} is not complete, and {EXPORTED} there means that it is; give another --out")
    card = {"facts": state.get("facts", {}), "scores": scores, "licence": licence}
    decoder = method.exported_parts().get("decoder", {})
    export_backbone(path, method.exported_backbone(), layout, config, steps, card, slides_of_run(folder), decoder)
    return path


def export_backbone(
    path: Path,
    backbone: Backbone,
    layout: str,
    config: Mapping[str, Any],
    steps: int,
    card: Mapping[str, Any] | None = None,
    slides: Sequence[str] | None = None,
    decoder: Mapping[str, Tensor] = MappingProxyType({}),
) -> None:
    """Write a backbone, with metadata of its run, and its model card.

    Args:
        path: the file.
        backbone: the backbone.
        layout: the convention of the names in the file.
        config: the run's configuration.
        steps: number of optimizer steps that it was trained for.
        card: what else the model card contains: see :func:`~densepath.training.model_card.write_card`.
        slides: the names of the slides that it was trained on; None for images.
        decoder: as for :func:`~densepath.nets.weights.save_backbone`.
    """
    metadata = describe_run(config, steps, slides)
    save_backbone(path, backbone, layout, metadata, decoder)
    draw_safely(lambda: write_card(path, backbone, layout, metadata, **(card or {})), "the model card was not written")


def describe_run(config: Mapping[str, Any], steps: int, slides: Sequence[str] | None) -> dict[str, str]:
    """The metadata that weights have of their run. Arguments as for :func:`export_backbone`."""
    notes = {"method": str(config["method"]), "steps": str(steps), "config": json.dumps(bare(dict(config)))}
    return notes | pixel_notes(pixels_of(config)) | slide_notes(slides)


def export_parts(
    folder: Path,
    parts: Mapping[str, Mapping[str, Tensor]],
    config: Mapping[str, Any],
    steps: int,
    slides: Sequence[str] | None = None,
) -> None:
    """Write the exported parts of a method besides its backbone: a safetensors file for each, with metadata of its run.

    Args:
        folder: the folder of the files.
        parts: name -> tensors.
        config: the run's configuration.
        steps: number of optimizer steps that they were trained for.
        slides: the names of the slides that they were trained on; None for images.
    """
    notes = {"format": "pt", "format_version": FORMAT_VERSION, "backbone": str(config["backbone"])}
    notes |= describe_run(config, steps, slides)
    for name, state in parts.items():
        plain = {key: value.detach().cpu().clone(memory_format=torch.contiguous_format) for key, value in state.items()}
        with atomic_write(folder / f"{name}.safetensors") as temporary:
            write_tensors(plain, temporary, notes)
