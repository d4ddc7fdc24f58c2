"""How a file of weights says which pixels its network was trained on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from densepath.core.errors import UserError
from densepath.nets.hub import HUB, fetch
from densepath.nets.model_folders import read_config
from densepath.nets.weights import read_weights, weights_file
from densepath.sources.pixel_source import PixelSpec

_CONFIG = "config.yaml"  # of a run


def pixels_of_weights(source: str | Path, images: PixelSpec | None = None) -> PixelSpec:
    """How to show pixels to a network with some weights: as they say themselves, else as the images do.

    densepath's weights say all of it. Older ones, and those that timm has under a name, say mean and standard
    deviation only. Where the images are known and have another number of channels, theirs counts: weights are adapted
    to the channels when they are loaded.

    Args:
        source: "random", a file, a run folder, a timm name, or "hf-hub:OWNER/NAME".
        images: what the images are; None where they are read as the weights need them.

    Raises:
        UserError: the weights cannot be read, or say something that makes no sense.
    """
    base = PixelSpec() if images is None else images
    said = _said(source)
    try:
        if not said.keys() >= {"ndim", "channels", "window"}:
            mean, std = said.get("mean", base.mean), said.get("std", base.std)
            return base if images is not None and len(mean) != base.channels else base.override(tuple(mean), tuple(std))
        spec = PixelSpec.from_record({name: said[name] for name in base.record()})
    except (UserError, LookupError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{source} names no mean and std of its channels, or no window; export it again") from error
    return spec if images is None or (spec.channels, spec.ndim) == (images.channels, images.ndim) else images


def _said(source: str | Path) -> Mapping[str, Any]:
    """What is said of the pixels, of the names that a specification has."""
    name = str(source)
    if name == "random":
        return {}
    if name.startswith(HUB):
        pretrained: Any = read_config(fetch(name, ("config.json",))).get("pretrained_cfg") or {}
        return {key: list(pretrained[key]) for key in ("mean", "std") if key in pretrained}
    if not Path(source).exists():
        import timm

        if not timm.models.is_model_pretrained(name):
            return {}
        made: Any = timm.get_pretrained_cfg(name)
        return {"mean": list(made.mean), "std": list(made.std)}
    metadata = read_weights(source).metadata
    try:
        said = {key: json.loads(metadata[key]) for key in PixelSpec().record() if key in metadata}
    except (ValueError, RecursionError):
        return {"mean": (), "std": ()}
    return said or _said_by_run(weights_file(source))


def _said_by_run(checkpoint: Path) -> Mapping[str, Any]:
    """A checkpoint says nothing of pixels, but the configuration of its run does."""
    try:
        config = yaml.safe_load((checkpoint.parent.parent / _CONFIG).read_text())
        pixels = config.get("pixels")
    except (yaml.YAMLError, OSError, ValueError, RecursionError, AttributeError):
        return {}
    return pixels if isinstance(pixels, dict) else {}
