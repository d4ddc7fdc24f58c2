"""Exports weights of other projects: the backbone in a checkpoint, or its tensors if densepath has no such network."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from densepath.core.errors import UserError, counted, first_few
from densepath.core.files import atomic_write
from densepath.core.keywords import is_on_disk
from densepath.core.streams import say
from densepath.nets.backbones import Backbone
from densepath.nets.backbones.choose import choose_backbone
from densepath.nets.weights import FORMAT_VERSION, load_weights, pixel_notes, read_weights, save_backbone, write_tensors
from densepath.nets.weights.backbone_weights import below, require_weights
from densepath.nets.weights.channels import channels_of_tensors
from densepath.nets.weights.pixels import pixels_of_weights
from densepath.nets.weights.pretrained import backbone_of_weights
from densepath.nets.weights.published import is_published, read_published
from densepath.nets.weights.transformer_names import to_timm
from densepath.sources.pixel_source import PixelSpec
from densepath.training.model_card import write_card
from densepath.version import __version__


def export_file(
    source: str | Path,
    out: Path | None,
    layout: str | None,
    backbone: str | nn.Module | None,
    prefix: str,
    card: Mapping[str, Any],
) -> Path:
    """Write the backbone in weights of another project, its model card beside it, and report what was taken.

    Args:
        source: a file, a timm name, "hf-hub:OWNER/NAME" or the folder of such a model.
        out: the file to write; it must be given.
        layout, backbone, prefix: as for :func:`~densepath.training.export.export`.
        card: as for :func:`~densepath.training.export.export_backbone`.

    Returns:
        The file.

    Raises:
        UserError: see :func:`~densepath.training.export.export`.
    """
    name = str(source)
    require_weights(source)
    if out is None:
        if is_on_disk(source) and Path(source).is_file():
            _state(source)  # reports a file that holds no weights
        raise UserError(f"{source} is not the folder of a pre-training run; name the file to write with --out")
    if layout == "tensors" and backbone is not None:
        raise UserError("the layout tensors takes all tensors of a file as they are; leave backbone out")
    if layout != "tensors":
        try:
            found = backbone_of_weights(source, prefix) if backbone is None else copy.deepcopy(backbone)
        except UserError as error:
            if layout is not None or not is_on_disk(source):
                raise UserError(f"{error}; or write its tensors unchanged with --layout tensors") from error
            _state(source)  # reports a file that cannot be read
            say(f"densepath: {error}; so its tensors are written unchanged, under their own names")
            layout = "tensors"
    if layout == "tensors":
        return _export_tensors(source, out, prefix, card)
    layout = layout or "timm"
    made, spec = _for_its_images(found, pixels_of_weights(source), source, prefix)
    line = load_weights(made, source, prefix, complete=True)
    notes = {"origin": Path(name).name if is_on_disk(name) else name} | pixel_notes(spec)
    save_backbone(out, made, layout, notes)
    write_card(out, made, layout, notes, **card)
    say(f"densepath: {line}")
    return out


def _export_tensors(source: str | Path, out: Path, prefix: str, card: Mapping[str, Any]) -> Path:
    """Write all tensors of a file, without the prefix that all their names share."""
    if out.suffix != ".safetensors":
        raise UserError(f"{out} must end in .safetensors for the layout tensors")
    state = _state(source)
    shared = prefix or _shared_prefix([*state])
    kept = {key.removeprefix(shared): value for key, value in state.items() if key.startswith(shared)}
    if not kept:
        raise UserError(f"{source} has no tensors under {prefix!r}; its names begin with {first_few(list(state))}")
    plain = {key: value.detach().clone(memory_format=torch.contiguous_format) for key, value in kept.items()}
    notes = {"format": "pt", "format_version": FORMAT_VERSION, "layout": "tensors", "densepath_version": __version__}
    notes |= {"origin": Path(source).name}
    with atomic_write(out) as temporary:
        write_tensors(plain, temporary, notes)
    write_card(out, None, "tensors", notes, **card)
    dimensions = {value.ndim for value in plain.values()}
    volumes = " of a network for volumes" if 5 in dimensions else ""
    under = f" under {shared}" if shared else ""
    say(f"densepath: {counted(len(plain), 'tensor')}{volumes} from {source}{under}: {first_few(list(plain))}")
    return out


def _shared_prefix(names: Sequence[str]) -> str:
    """The first parts that all names share, such as "module."; empty if there are none."""
    parts = [name.split(".")[:-1] for name in names]
    shared = [same[0] for same in takewhile(lambda same: len(set(same)) == 1, zip(*parts, strict=False))]
    return "".join(f"{part}." for part in shared)


def _state(source: str | Path) -> Mapping[str, Tensor]:
    return read_published(source).state if is_published(source) else read_weights(source).state_dict


def _for_its_images(
    backbone: str | nn.Module, spec: PixelSpec, source: str | Path, prefix: str
) -> tuple[Backbone, PixelSpec]:
    """The backbone for images of the channels that its first layer has, and their specification."""
    channels = spec.channels
    if isinstance(backbone, nn.Module):
        layers = (layer for layer in backbone.modules() if isinstance(layer, nn.Conv2d | nn.Conv3d))
        channels = next((layer.in_channels for layer in layers), channels)
    made = choose_backbone(backbone, channels)
    if isinstance(backbone, str) and (is_published(source) or is_on_disk(source)):
        state = to_timm(_state(source))
        channels = channels_of_tensors(below(state, prefix, str(source)) if prefix else state, made)
        made = choose_backbone(backbone, channels) if channels != made.in_channels else made
    if (channels, made.ndim) != (spec.channels, spec.ndim):
        spec = PixelSpec.default(channels, ndim=made.ndim)
    return made, spec
