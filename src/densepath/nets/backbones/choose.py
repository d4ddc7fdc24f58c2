"""The backbone of a run: by name, from the Hugging Face hub, or a network from the user."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from densepath.core.errors import UserError, counted
from densepath.nets.backbones.backbone import Backbone
from densepath.nets.backbones.dilation import dilate_last_stage
from densepath.nets.backbones.listed import ListedBackbone
from densepath.nets.backbones.timm_backbone import TRIAL_SIZE, TimmBackbone, build_backbone
from densepath.nets.backbones.transformers import is_transformer, wrap_transformer
from densepath.nets.weights.hub import is_hub_name
from densepath.nets.weights.model_folders import read_json
from densepath.nets.weights.published import backbone_of_config, published_folder, read_published


def choose_backbone(backbone: str | nn.Module, channels: int = 3, output_stride: int = 32) -> Backbone:
    """A backbone for images of a number of channels.

    Args:
        backbone: a name as for :func:`build_backbone`; "hf-hub:OWNER/NAME" for the architecture of a model on the
            Hugging Face hub (with random weights; give it as the weights, too, to load them); a
            :class:`~densepath.nets.backbones.Backbone`; a network of ``timm.create_model(name, features_only=True)``;
            a vision transformer of timm; or a network that returns the list of its maps, from the first to the deepest,
            such as the encoder of a U-Net of dynamic-network-architectures.
        channels: channels of the images.
        output_stride: 16 dilates the last stage of a ConvNet, see :func:`dilate_last_stage`; 32 leaves the network as
            it is.

    Raises:
        UserError: the name is unknown, or the network does not return its stages or cannot be dilated.
    """
    made = _choose(backbone, channels)
    if output_stride == 16:
        with torch.random.fork_rng(devices=[]):  # what is initialized next gets the same weights as without it
            dilate_last_stage(made)
    elif output_stride != 32:
        raise UserError(f"output_stride is {output_stride}; use 16 or 32")
    return made


def _choose(backbone: str | nn.Module, channels: int) -> Backbone:
    if isinstance(backbone, str):
        return _of_hub(backbone, channels) if is_hub_name(backbone) else build_backbone(backbone, channels)
    made = backbone if isinstance(backbone, Backbone) else _wrap(backbone, channels)
    if made.in_channels != channels:
        raise UserError(
            f"the backbone {made.name} takes images of {counted(made.in_channels, 'channel')}, but these have "
            f"{channels}; build it for {channels}"
        )
    return made


def _of_hub(name: str, channels: int) -> Backbone:
    """The backbone of a published network, with random weights; its weights say more than its configuration."""
    folder = published_folder(name, weights=False)
    found = backbone_of_config(read_json(folder / "config.json"))
    if found is None or is_transformer(found):
        found = read_published(name).backbone
    if found is None:
        raise UserError(f"{name} is not a network of timm, or a ViT or DINOv2 of transformers; choose another one")
    return build_backbone(found, channels)


def _wrap(network: Any, channels: int) -> Backbone:
    """A network of timm as a backbone."""
    name = (getattr(network, "pretrained_cfg", None) or {}).get("architecture")
    info = getattr(network, "feature_info", None)
    try:
        if name is None and info is None:
            return ListedBackbone(network, type(network).__name__, channels)
        if name is None or not (hasattr(info, "reduction") or is_transformer(name)):
            raise ValueError("not a timm network that returns its stages")
        net = network if hasattr(info, "reduction") else wrap_transformer(network)
        made = TimmBackbone(net, name, channels)
        mode = made.training
        with torch.no_grad():
            side = made.patch_size * (TRIAL_SIZE // made.patch_size)
            made.eval()(torch.zeros(1, channels, side, side))
        made.train(mode)
    except Exception as error:  # each network raises other exceptions
        raise UserError(
            f"the backbone, a {type(network).__name__}, does not return the maps of its stages; build it with "
            "timm.create_model(name, features_only=True), let it return the list of its maps, or derive it from "
            "densepath.nets.backbones.Backbone"
        ) from error
    return made
