"""The tensor names of networks for volumes in Models Genesis, MONAI and nnU-Net."""

from __future__ import annotations

import re
from collections.abc import Container, Mapping

import torch
from torch import Tensor

from densepath.core.errors import UserError
from densepath.nets.backbones import Backbone
from densepath.nets.backbones.listed import resenc_options
from densepath.nets.backbones.resnet3d import ResNet3D
from densepath.nets.backbones.unet3d import UNet3D

VOLUME_LAYOUTS = ("models_genesis", "monai", "nnunet")
HOLDER = {"models_genesis": "state_dict", "monai": "state_dict", "nnunet": "network_weights"}  # their key in a file
_LAYER = re.compile(r"(?:stem|layer(\d)\.(\d+)\.(conv1|conv2|downsample))\.(\d)\.(\w+)")
_MONAI = re.compile(r"(?:(layer\d\.\d+)\.)?(?:(conv|bn)([12])|(downsample\.\d))\.(\w+)")


def arrange_volumes(
    backbone: Backbone, layout: str, decoder: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], list[str]]:
    """Give the tensors of a backbone for volumes, and of its decoder, the names of another library.

    Args:
        backbone: the backbone.
        layout: "models_genesis": a whole ``UNet3D``; "monai": ``monai.networks.nets.ResNet``; "nnunet": a whole
            ``ResidualEncoderUNet``.
        decoder: the decoder's tensors and those of its head, for "models_genesis"; empty if there is none.

    Returns:
        name -> tensor, and the names of those that are not trained: the decoder, if there is none of this library.

    Raises:
        UserError: the library has no such network.
    """
    trained = backbone.net.state_dict()
    if layout == "models_genesis" and isinstance(backbone, UNet3D):
        return _models_genesis(backbone, decoder)
    if layout == "monai" and isinstance(backbone, ResNet3D):
        return {_monai_name(name): value for name, value in trained.items()}, []
    if layout == "nnunet" and backbone.name.startswith("resenc_3d"):
        return _nnunet(backbone)
    fitting = {"models_genesis": "unet_3d", "monai": "resnet18_3d", "nnunet": "resenc_3d"}[layout]
    raise UserError(f"{backbone.name} has no counterpart in the layout {layout}, which is for networks like {fitting}")


def _models_genesis(backbone: UNet3D, decoder: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    from densepath.nets.decoders.build import build_decoder, decoder_state  # it reads weights itself

    state, untrained = dict(decoder), []
    if not state:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            state = decoder_state(*build_decoder(backbone))
        untrained = [f"module.{name}" for name in state]
    whole = backbone.net.state_dict() | state
    return {f"module.{name}": value for name, value in whole.items()}, untrained


def _monai_name(name: str) -> str:
    match = _LAYER.fullmatch(name)
    assert match is not None, name
    stage, block, part, number, leaf = match.groups()
    if stage is None:
        return f"{('conv1', 'bn1')[int(number)]}.{leaf}"
    if part == "downsample":
        return f"layer{stage}.{block}.downsample.{number}.{leaf}"
    return f"layer{stage}.{block}.{('conv', 'bn')[int(number)]}{part[-1]}.{leaf}"


def from_monai(key: str, names: Container[str]) -> str | None:
    """The name in a ``ResNet3D`` of a tensor of MONAI's ``ResNet``; None if it has none."""
    match = _MONAI.fullmatch(key)
    if match is None:
        return None
    block, kind, number, downsample, leaf = match.groups()
    if downsample:
        return key
    return f"{f'{block}.conv{number}' if block else 'stem'}.{int(kind == 'bn')}.{leaf}"


def _nnunet(backbone: Backbone) -> tuple[dict[str, Tensor], list[str]]:
    from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet

    options = resenc_options(backbone.name, backbone.in_channels)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        network = ResidualEncoderUNet(**options, num_classes=2, n_conv_per_stage_decoder=1, deep_supervision=True)
    network.encoder.load_state_dict(backbone.net.state_dict())
    state = {name: value for name, value in network.state_dict().items() if ".seg_layers." not in name}
    return state, [name for name in state if not name.startswith(("encoder.", "decoder.encoder."))]
