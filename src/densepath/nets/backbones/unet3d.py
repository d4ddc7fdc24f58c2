"""The encoder of Models Genesis' 3D U-Net, of any width."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from densepath.core.errors import UserError
from densepath.nets.backbones.backbone import Backbone

_NAME = re.compile(r"unet_3d(?:_w(\d+))?")
_LEVELS = ("down_tr64", "down_tr128", "down_tr256", "down_tr512")  # f1 to f4, whatever their width
_FIRST = "down_tr64.ops.0.conv1.weight"
WIDTH = 32
NAMES_UNET = ("unet_3d",)


class UNet3D(Backbone):
    """The contracting path of a 3D U-Net, with stages f1 (full resolution) to f4.

    A stage has two convolutions of 3 x 3 x 3, each with a batch norm and ReLU, to width * 2**(i - 1) and
    width * 2**i channels; a max-pool by 2 along each axis precedes f2, f3 and f4. With a width of 32 it is the encoder
    of Models Genesis and of the released 3D PCRL, with the same tensor names. These use batch statistics in evaluation,
    too; ours are plain batch norms.

    Args:
        name: see :func:`build_unet3d`.
        in_channels: channels of the volumes.
        width: channels of the first convolution.

    Source: Çiçek et al., "3D U-Net", MICCAI 2016; Zhou et al., Models Genesis, MICCAI 2019, as released.
    """

    def __init__(self, name: str, in_channels: int, width: int = WIDTH) -> None:
        levels: OrderedDict[str, nn.Module] = OrderedDict()
        channels, strides, before = {}, {}, in_channels
        for stage, level in enumerate(_LEVELS, start=1):
            middle = width * 2 ** (stage - 1)
            convolutions = nn.Sequential(UNetConvolution(before, middle), UNetConvolution(middle, 2 * middle))
            levels[level] = nn.Sequential(OrderedDict(ops=convolutions))
            before = channels[stage] = 2 * middle
            strides[stage] = (2 ** (stage - 1),) * 3
        super().__init__(nn.Sequential(levels), name, channels, strides, in_channels)
        self.width = width

    def forward(self, x: Tensor, last: int = 5) -> dict[int, Tensor]:
        last = min(last, self.deepest)
        self.check_stage(last)
        self.check_size(*x.shape[2:])
        maps: dict[int, Tensor] = {}
        for stage, level in zip(self.stages[:last], self.net, strict=False):
            x = maps[stage] = level(x if stage == 1 else F.max_pool3d(x, 2, ceil_mode=True))
        return maps


class UNetConvolution(nn.Module):
    """A convolution of 3 x 3 x 3 with batch norm and ReLU: ``LUConv`` of Models Genesis.

    Args:
        in_channels, out_channels: channels before and after.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(in_channels, out_channels, 3, padding=1)
        self.bn1 = nn.BatchNorm3d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, d, h, w) as (B, out_channels, d, h, w)."""
        out: Tensor = self.bn1(self.conv1(x)).relu()
        return out


def name_unet3d(state: Mapping[str, Tensor]) -> str | None:
    """The name of the U-Net whose tensors a file holds, under any prefix; None if it holds none."""
    first = first_weight(state)
    if first is None:
        return None
    return "unet_3d" if len(first) == WIDTH else f"unet_3d_w{len(first)}"


def first_weight(state: Mapping[str, Tensor]) -> Tensor | None:
    """The filters of the U-Net's first convolution, (width, channels, 3, 3, 3), in a file; None if it has none."""
    return next((value for name, value in state.items() if name.endswith(_FIRST) and value.ndim == 5), None)


def build_unet3d(name: str, channels: int = 1) -> UNet3D:
    """Build the encoder of a 3D U-Net, with random weights.

    Args:
        name: "unet_3d", optionally followed by "_w8" for 8 channels after the first convolution instead of 32.
        channels: channels of the volumes.

    Raises:
        UserError: there is no such network.
    """
    match = _NAME.fullmatch(name)
    if match is None or match[1] == "0":
        raise UserError(f"unknown backbone {name!r}; U-Nets are unet_3d or, of another width, e.g. unet_3d_w8")
    return UNet3D(name, channels, int(match[1] or WIDTH))
