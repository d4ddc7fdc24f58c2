"""The backbone of a run: by name, from the Hugging Face hub, or a network from the user."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from densepath.core.errors import UserError
from densepath.nets.backbones.backbone import Backbone
from densepath.nets.backbones.timm_backbone import TRIAL_SIZE, TimmBackbone, build_backbone
from densepath.nets.backbones.transformers import is_transformer, wrap_transformer
from densepath.nets.weights.hub import HUB, fetch
from densepath.nets.weights.model_folders import read_config

# Arguments of a hub model that do not change its backbone.
_OF_THE_HEAD = {"num_classes", "global_pool", "img_size", "dynamic_img_size", "features_only", "in_chans"}


def choose_backbone(backbone: str | nn.Module, channels: int = 3) -> Backbone:
    """A backbone for images of a number of channels.

    Args:
        backbone: a name as for :func:`build_backbone`; "hf-hub:OWNER/NAME" for the architecture of a timm model on the
            Hugging Face hub (with random weights; give it as the weights, too, to load them); a
            :class:`~densepath.nets.backbones.Backbone`; a network of ``timm.create_model(name, features_only=True)``;
            or a vision transformer of timm.
        channels: channels of the images.

    Raises:
        UserError: the name is unknown, or the network does not return its stages.
    """
    if isinstance(backbone, str):
        return _of_hub(backbone, channels) if backbone.startswith(HUB) else build_backbone(backbone, channels)
    made = backbone if isinstance(backbone, Backbone) else _wrap(backbone, channels)
    if made.in_channels != channels:
        raise UserError(
            f"the backbone {made.name} takes images of {made.in_channels} channels, but these have {channels}; "
            f"build it for {channels}"
        )
    return made


def _of_hub(name: str, channels: int) -> Backbone:
    config = read_config(fetch(name, ("config.json",)))
    if "architecture" not in config:
        raise UserError(f"{name} is not a model of timm; choose one whose config.json names a timm architecture")
    other = {key: value for key, value in (config.get("model_args") or {}).items() if key not in _OF_THE_HEAD}
    if other:
        arguments = ", ".join(f"{key}={value}" for key, value in other.items())
        raise UserError(
            f"{name} is a {config['architecture']} with {arguments}, which has no name in timm; build it with "
            "timm.create_model, and give the network as the backbone in Python"
        )
    return build_backbone(str(config["architecture"]), channels)


def _wrap(network: Any, channels: int) -> Backbone:
    """A network of timm as a backbone."""
    name = (getattr(network, "pretrained_cfg", None) or {}).get("architecture")
    info = getattr(network, "feature_info", None)
    try:
        if name is None or not (hasattr(info, "reduction") or is_transformer(name)):
            raise ValueError("not a timm network that returns its stages")
        net = network if hasattr(info, "reduction") else wrap_transformer(network)
        made = TimmBackbone(net, name, channels)
        mode = made.training
        with torch.no_grad():
            made.eval()(torch.zeros(1, channels, TRIAL_SIZE, TRIAL_SIZE))
        made.train(mode)
    except Exception as error:  # each network raises other exceptions
        raise UserError(
            f"the backbone, a {type(network).__name__}, does not return the maps of its stages; build it with "
            "timm.create_model(name, features_only=True), or derive it from densepath.nets.backbones.Backbone"
        ) from error
    return made
