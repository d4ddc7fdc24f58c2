"""The pixel specification that a network's weights were trained with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from torch import Tensor

from densepath.core.errors import UserError
from densepath.core.keywords import is_on_disk
from densepath.nets.backbones.unet3d import first_weight
from densepath.nets.weights.backbone_weights import read_weights, weights_file
from densepath.nets.weights.of_run import config_of
from densepath.nets.weights.published import configuration_of, is_published, preprocessing, published_folder
from densepath.sources.pixel_source import PixelSpec


def pixels_of_weights(source: str | Path, images: PixelSpec | None = None) -> PixelSpec:
    """The pixel specification for a network with given weights: that of the weights if known, else that of the images.

    densepath's weights contain all of it. Older ones, and those of timm and the hub, contain only mean and standard
    deviation. If
    the images are known and have another number of channels, their specification is used: weights are adapted to the
    channels when they are loaded.

    Args:
        source: "random", a file, a run folder, a timm name, "hf-hub:OWNER/NAME" or the folder of such a model.
        images: the specification of the images; None if they are read as the weights need them.

    Raises:
        UserError: the weights cannot be read, or their specification is invalid.
    """
    known = _known(source)
    try:
        base = PixelSpec.default(len(known.get("mean", PixelSpec.mean))) if images is None else images
        if not known.keys() >= {"ndim", "channels", "window"}:
            if not known.keys() >= {"mean", "std"} or (images is not None and len(known["mean"]) != base.channels):
                return base
            return base.override(tuple(known["mean"]), tuple(known["std"]))
        needed = {name: known[name] for name in base.record() if name != "bits"}
        spec = PixelSpec.from_record(needed | {"bits": known.get("bits")})
    except (UserError, LookupError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{source} has no valid mean and std of its channels, or window; export it again") from error
    return spec if images is None or (spec.channels, spec.ndim) == (images.channels, images.ndim) else images


def _known(source: str | Path) -> Mapping[str, Any]:
    """The fields of the specification that the weights contain."""
    name = str(source)
    if name == "random":
        return {}
    if is_published(source):
        folder = published_folder(source, weights=False)
        mean, std, _ = preprocessing(source, folder, configuration_of(folder))
        return {"mean": list(mean), "std": list(std)} if mean else {}
    if not is_on_disk(source):
        import timm

        if not timm.models.is_model_pretrained(name):
            return {}
        made: Any = timm.get_pretrained_cfg(name)
        return {"mean": list(made.mean), "std": list(made.std)}
    weights = read_weights(source)
    metadata = weights.metadata
    try:
        if "densepath_detector" in metadata:
            detector = json.loads(metadata["densepath_detector"])
            return {"ndim": 2, "channels": len(detector["mean"]), "window": [0, 255], **detector}
        known = {each.name: json.loads(metadata[each.name]) for each in fields(PixelSpec) if each.name in metadata}
    except (ValueError, LookupError, TypeError, RecursionError):
        return {"mean": (), "std": ()}
    return known or _known_from_run(weights_file(source)) or _known_from_unet3d(weights.state_dict)


def _known_from_unet3d(state: Mapping[str, Tensor]) -> Mapping[str, Any]:
    """What Models Genesis' U-Nets were trained on: CT from -1000 to 1000 HU as [0, 1]."""
    first = first_weight(state)
    if first is None:
        return {}
    channels = first.shape[1]
    return {"ndim": 3, "channels": channels, "window": [-1000, 1000], "mean": [0] * channels, "std": [1] * channels}


def _known_from_run(checkpoint: Path) -> Mapping[str, Any]:
    """The fields in the configuration of a checkpoint's run; the checkpoint has none."""
    pixels = config_of(checkpoint).get("pixels")
    return pixels if isinstance(pixels, dict) else {}
