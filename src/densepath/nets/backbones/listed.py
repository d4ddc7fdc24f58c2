"""Any network that returns the list of its maps as a backbone, such as the encoders of nnU-Net."""

from __future__ import annotations

import copy
import math
import re
from typing import Any

import torch
from torch import Tensor, nn

from densepath.core.errors import UserError
from densepath.nets.backbones.backbone import Backbone

_SIDE = 64  # pixels of the trial
_RESENC = re.compile(r"resenc_3d(?:_w(\d+))?")
_WIDTH, _WIDEST = 32, 10  # channels of f1; those of the deepest stages relative to it
_BLOCKS = (1, 3, 4, 6, 6, 6)
NAMES_LISTED = ("resenc_3d",)


class ListedBackbone(Backbone):
    """A network whose maps f1, f2, ... are a list or tuple, from the first to the deepest.

    It computes all of them for any ``last``.

    Args:
        net: the network. Its channels and strides are found by a pass without numbers.
        name: its name.
        in_channels: channels of the images.

    Raises:
        ValueError: it does not return such a list, or the strides do not follow from it.
    """

    def __init__(self, net: nn.Module, name: str, in_channels: int) -> None:
        first = next((module for module in net.modules() if isinstance(module, nn.Conv2d | nn.Conv3d)), None)
        if first is None:
            raise ValueError("it has no convolution, whose dimensions are those of its images")
        ndim = 2 if isinstance(first, nn.Conv2d) else 3
        trial = torch.zeros(1, in_channels, *[_SIDE] * ndim, device="meta")
        maps = copy.deepcopy(net).to("meta").eval()(trial)
        if not isinstance(maps, list | tuple) or any(x.ndim != 2 + ndim for x in maps):
            raise ValueError("it does not return a list of maps")
        if odd := [tuple(x.shape[2:]) for x in maps if any(_SIDE % side for side in x.shape[2:])]:
            raise ValueError(f"a map of {' x '.join(map(str, odd[0]))} for {_SIDE} px has no whole stride")
        channels = {stage: x.shape[1] for stage, x in enumerate(maps, start=1)}
        strides = {stage: tuple(_SIDE // n for n in x.shape[2:]) for stage, x in enumerate(maps, start=1)}
        super().__init__(net, name, channels, strides, in_channels)

    def forward(self, x: Tensor, last: int = 99) -> dict[int, Tensor]:
        last = min(last, self.deepest)
        self.check_stage(last)
        self.check_size(*x.shape[2:])
        return dict(zip(self.stages[:last], self.net(x), strict=False))

    def check_size(self, *size: int) -> None:
        super().check_size(*size)
        instance = any(isinstance(module, nn.InstanceNorm2d | nn.InstanceNorm3d) for module in self.net.modules())
        if instance and math.prod(self.grid(self.deepest, *size)) == 1:
            least = max(self.strides[self.deepest]) + 1
            raise UserError(
                f"{self.name} has instance norms, which need more than one position in its deepest map; use views of "
                f"at least {least} along an axis"
            )


def build_resenc(name: str, channels: int = 1) -> ListedBackbone:
    """Build the encoder of nnU-Net's ResEnc-L U-Net, with random weights.

    Args:
        name: "resenc_3d", optionally followed by "_w8" for 8 channels in f1 instead of 32.
        channels: channels of the volumes.

    Raises:
        UserError: there is no such network, or the package dynamic-network-architectures is missing.
    """
    match = _RESENC.fullmatch(name)
    if match is None or match[1] == "0":
        raise UserError(f"unknown backbone {name!r}; nnU-Net's are resenc_3d or, of another width, e.g. resenc_3d_w8")
    try:
        from dynamic_network_architectures.building_blocks.residual_encoders import ResidualEncoder
    except ImportError as error:
        raise UserError(
            f"{name} needs nnU-Net's networks; install them with pip install dynamic-network-architectures"
        ) from error
    return ListedBackbone(ResidualEncoder(**resenc_options(name, channels), return_skips=True), name, channels)


def resenc_options(name: str, channels: int) -> dict[str, Any]:
    """The arguments of dynamic-network-architectures' networks: those of nnU-Net's ResEnc-L plan, of any width.

    Source: Isensee et al., "nnU-Net revisited", MICCAI 2024.
    """
    match = _RESENC.fullmatch(name)
    assert match is not None
    width = int(match[1] or _WIDTH)
    return {
        "input_channels": channels,
        "n_stages": len(_BLOCKS),
        "features_per_stage": [min(width * 2**stage, width * _WIDEST) for stage in range(len(_BLOCKS))],
        "conv_op": nn.Conv3d,
        "kernel_sizes": 3,
        "strides": [1, *[2] * (len(_BLOCKS) - 1)],
        "n_blocks_per_stage": list(_BLOCKS),
        "conv_bias": True,
        "norm_op": nn.InstanceNorm3d,
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "nonlin": nn.LeakyReLU,
        "nonlin_kwargs": {"inplace": True},
    }
