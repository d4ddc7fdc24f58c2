"""The backbone of a run: by name, from the Hugging Face hub, or a network from the user."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from densepath.core.errors import UserError, counted, errors_as
from densepath.core.records import UNLIKE
from densepath.nets.backbones.backbone import Backbone
from densepath.nets.backbones.dilation import DILATED, dilate_last_stage, is_dilated
from densepath.nets.backbones.listed import ListedBackbone
from densepath.nets.backbones.rebuilt import is_rebuilt
from densepath.nets.backbones.timm_backbone import EqualStrides, TimmBackbone, build_backbone, is_named
from densepath.nets.backbones.transformers import is_transformer, wrap_transformer
from densepath.nets.backbones.trial import check_maps
from densepath.nets.weights.hub import is_hub_name
from densepath.nets.weights.model_folders import read_json
from densepath.nets.weights.published import backbone_of_config, published_folder, read_published


def choose_backbone(backbone: str | nn.Module, channels: int = 3, output_stride: int = 32) -> Backbone:
    """A backbone for images of a number of channels.

    Args:
        backbone: a name as for :func:`build_backbone`; "hf-hub:OWNER/NAME" for the architecture of a model on the
            Hugging Face hub (with random weights; give it as the weights, too, to load them); a
            :class:`~densepath.nets.backbones.Backbone`; a network of ``timm.create_model(name, features_only=True)``;
            a vision transformer of ``timm.create_model(name, dynamic_img_size=True)``; or a network that returns the
            list of its maps, from the first to the deepest, such as the encoder of a U-Net of
            dynamic-network-architectures. A network is put into training mode, and modified in place; one that differs
            from that of its name is called by this name with a "*".
        channels: channels of the images.
        output_stride: 16 dilates the last stage of a ConvNet, see :func:`dilate_last_stage`; 32 leaves the network as
            it is.

    Raises:
        UserError: the name is unknown, or the network does not return its stages, is not in float32, or cannot be
            dilated.
    """
    made = _choose(backbone, channels)
    if output_stride == 16:
        dilate_last_stage(made)
    elif output_stride != 32:
        raise UserError(f"output_stride is {output_stride}; use 16 or 32")
    return made


def _choose(backbone: str | nn.Module, channels: int) -> Backbone:
    if isinstance(backbone, str):
        return _of_hub(backbone, channels) if is_hub_name(backbone) else build_backbone(backbone, channels)
    if not isinstance(backbone, nn.Module):
        raise UserError(f"backbone is {backbone!r}; give the name of a network, or a network, not its class")
    others = {x.dtype for x in backbone.parameters() if x.is_floating_point() and x.dtype != torch.float32}
    if others:
        raise UserError(
            f"the backbone, a {type(backbone).__name__}, has weights of {min(map(str, others))}; convert it with "
            ".float(); the option precision sets that of a run"
        )
    made = backbone if isinstance(backbone, Backbone) else _wrap(backbone, channels)
    if made.in_channels != channels:
        raise UserError(
            f"the backbone {made.name} takes images of {counted(made.in_channels, 'channel')}, but these have "
            f"{channels}; build it for {channels}"
        )
    if is_named(made.name) and not is_rebuilt(made):
        made.name += UNLIKE
    return made.train()


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
    """A network of timm, or one that returns the list of its maps, as a backbone."""
    name = (getattr(network, "pretrained_cfg", None) or {}).get("architecture")
    info = getattr(network, "feature_info", None)
    transformer = name is not None and is_transformer(name)
    with errors_as(lambda error: _refusal(network, transformer, error)):
        if name is None and info is None:
            return ListedBackbone(network, type(network).__name__, channels)
        if name is None or not (hasattr(info, "reduction") or transformer):
            raise ValueError("it is not a network of timm that returns its stages")
        net = network if hasattr(info, "reduction") else wrap_transformer(network)
        made = TimmBackbone(net, name, channels)
        if is_dilated(made):
            made.strides[5] = DILATED
        check_maps(made)
    return made


def _refusal(network: nn.Module, transformer: bool, error: Exception) -> UserError:
    if transformer:
        remedy = "build it for images of any size, with timm.create_model(name, dynamic_img_size=True)"
    elif isinstance(error, EqualStrides):
        remedy = "build it without output_stride, which is an option of pre-training, or choose another network"
    elif hasattr(getattr(network, "feature_info", None), "reduction"):
        remedy = (
            "let a module around it return the list of its maps (B, C, H, W) for images of any size, or choose another "
            "network"
        )
    else:
        remedy = (
            "build it with timm.create_model(name, features_only=True), let it return the list of its maps, or derive "
            "it from densepath.nets.backbones.Backbone"
        )
    return UserError(
        f"the backbone, a {type(network).__name__}, does not return the maps of its stages ({type(error).__name__}: "
        f"{error}); {remedy}"
    )
