"""Residual ConvNets for volumes."""

from __future__ import annotations

import re
from collections import OrderedDict

from torch import Tensor, nn

from densepath.core.errors import UserError
from densepath.nets.backbones.backbone import Backbone

_BLOCKS = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}  # of f2, f3, f4, f5
_NAME = re.compile(r"resnet(\d+)_3d(?:_w(\d+))?(?:_s([12])([12])([12]))?")
NAMES_3D = tuple(f"resnet{layers}_3d" for layers in _BLOCKS)


class ResNet3D(Backbone):
    """A residual network of 3 x 3 x 3 convolutions, with stages f1 (the stem) to f5.

    f1 and f2 have the stride of the stem, and each later stage twice the stride of the stage before. There is no
    max-pool. With stem strides (1, 2, 2), 64 channels and two blocks per stage it is torchvision's ``r3d_18``, with the
    same tensor names, whose weights can be loaded. Use strides (2, 2, 2) for isotropic volumes, and 1 along the axis of
    thick slices.

    Args:
        name: see :func:`build_resnet3d`.
        in_channels: channels of the volumes.
        blocks: residual blocks of f2, f3, f4 and f5.
        width: channels of f1 and f2; each later stage has twice as many.
        stem_strides: strides of the stem along each axis of a volume, 1 or 2, with kernel sizes of 3 or 7.

    Source: Tran et al., "A closer look at spatiotemporal convolutions", CVPR 2018 (R3D); the depths of Chen et al.,
    "Med3D", arXiv 1904.00625; initialized as the ResNets of :func:`build_backbone`.
    """

    def __init__(
        self,
        name: str,
        in_channels: int,
        blocks: tuple[int, ...],
        width: int = 64,
        stem_strides: tuple[int, ...] = (2, 2, 2),
    ) -> None:
        layers: OrderedDict[str, nn.Module] = OrderedDict(stem=_stem(in_channels, width, stem_strides))
        channels, strides = {1: width}, {1: stem_strides}
        for stage, count in enumerate(blocks, start=2):
            step = 1 if stage == 2 else 2
            channels[stage] = step * channels[stage - 1]
            strides[stage] = tuple(step * stride for stride in strides[stage - 1])
            first = ResidualBlock(channels[stage - 1], channels[stage], step)
            others = (ResidualBlock(channels[stage], channels[stage]) for _ in range(count - 1))
            layers[f"layer{stage - 1}"] = nn.Sequential(first, *others)
        super().__init__(nn.Sequential(layers), name, channels, strides, in_channels)
        self.apply(_initialize)

    def monai_options(self) -> dict[str, object]:
        """What MONAI's ``ResNet`` of the same shape has: blocks, widths, channels, sizes and strides of the stem."""
        blocks = [len(getattr(self.net, f"layer{number}")) for number in range(1, 5)]
        strides = self.strides[1]
        return {
            "blocks": blocks,
            "widths": [self.channels[stage] for stage in range(2, 6)],
            "channels": self.in_channels,
            "sizes": tuple(7 if stride == 2 else 3 for stride in strides),
            "strides": strides,
        }

    def forward(self, x: Tensor, last: int = 5) -> dict[int, Tensor]:
        last = min(last, self.deepest)
        self.check_stage(last)
        self.check_size(*x.shape[2:])
        maps: dict[int, Tensor] = {}
        for stage, layer in zip(self.stages[:last], self.net, strict=False):
            x = maps[stage] = layer(x)
        return maps


class ResidualBlock(nn.Module):
    """Two convolutions of 3 x 3 x 3 with batch norms, added to their input.

    Args:
        in_channels, out_channels: channels before and after.
        stride: stride of the first convolution along all axes; if it is not 1, a 1 x 1 x 1 convolution downsamples the
            input.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(
            nn.Conv3d(in_channels, out_channels, 3, stride, 1, bias=False), nn.BatchNorm3d(out_channels), nn.ReLU()
        )
        self.conv2 = nn.Sequential(
            nn.Conv3d(out_channels, out_channels, 3, 1, 1, bias=False), nn.BatchNorm3d(out_channels)
        )
        self.downsample = (
            nn.Identity()
            if stride == 1 and in_channels == out_channels
            else nn.Sequential(
                nn.Conv3d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm3d(out_channels)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, d, h, w) as (B, out_channels, *), the sides divided by the stride and rounded up."""
        out: Tensor = self.conv2(self.conv1(x)) + self.downsample(x)
        return out.relu()


def is_for_volumes(name: str) -> bool:
    """Whether a name is one of a network for volumes."""
    return isinstance(name, str) and "_3d" in name


def build_resnet3d(name: str, channels: int = 3) -> ResNet3D:
    """Build a residual network for volumes, with random weights.

    Args:
        name: "resnet10_3d", "resnet18_3d" or "resnet34_3d"; optionally followed by "_w16" for 16 channels
            instead of 64, and "_s122" for stem strides 1, 2, 2 along the axes of a volume instead of 2, 2, 2.
        channels: channels of the volumes.

    Raises:
        UserError: there is no such network.
    """
    match = _NAME.fullmatch(name)
    if match is None or int(match[1]) not in _BLOCKS or match[2] == "0":
        raise UserError(
            f"unknown backbone {name!r}; for volumes there are {', '.join(NAMES_3D)}, optionally with a width and "
            "the strides of the stem, e.g. resnet10_3d_w16_s122"
        )
    stem_strides = tuple(int(stride or 2) for stride in match.group(3, 4, 5))
    return ResNet3D(name, channels, _BLOCKS[int(match[1])], int(match[2] or 64), stem_strides)


def _stem(in_channels: int, width: int, strides: tuple[int, ...]) -> nn.Sequential:
    kernels = [7 if stride == 2 else 3 for stride in strides]
    padding = [kernel // 2 for kernel in kernels]
    conv = nn.Conv3d(in_channels, width, kernels, strides, padding, bias=False)  # type: ignore[arg-type]
    return nn.Sequential(conv, nn.BatchNorm3d(width), nn.ReLU())


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Conv3d):
        nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
