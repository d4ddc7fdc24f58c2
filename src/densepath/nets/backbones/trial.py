"""The maps of a small image, which show what a network computes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.func import functional_call

from densepath.nets.backbones.backbone import Backbone
from densepath.nets.preserve_mode import preserve_mode

TRIAL_SIZE = 64  # pixels: every stage then has more than one position
_TRIAL_GRID = 4  # patches along a side
_ROUNDING = 1e-4  # of the largest value: devices and layouts of memory sum in other orders


@torch.no_grad()
def trial_maps(backbone: Backbone, weights: Mapping[str, Tensor] | None = None) -> dict[int, Tensor]:
    """The maps of a small image of random pixels, in evaluation mode.

    Args:
        backbone: it is not changed.
        weights: are used instead of its tensors of the same names.
    """
    shape = (1, backbone.in_channels, *[_side(backbone)] * backbone.ndim)
    pixels = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    pixels = pixels.to(next(backbone.parameters(), pixels))
    with preserve_mode(backbone):
        maps: dict[int, Tensor] = functional_call(backbone.eval(), dict(weights or {}), (pixels,))
    return maps


def check_maps(backbone: Backbone) -> None:
    """Raise ValueError if the maps have other channels or strides than the backbone says."""
    sides = [_side(backbone)] * backbone.ndim
    expected = {stage: (1, backbone.channels[stage], *backbone.grid(stage, *sides)) for stage in backbone.stages}
    if {stage: tuple(feature.shape) for stage, feature in trial_maps(backbone).items()} != expected:
        raise ValueError(f"{backbone.name} does not give one map of each stride")


def same_maps(maps: Mapping[int, Tensor], others: Mapping[int, Tensor]) -> bool:
    """Whether maps equal those of the same stages among others, up to the rounding of another order of sums."""
    return maps.keys() <= others.keys() and all(
        one.shape == others[stage].shape and bool((one - others[stage]).abs().max() <= _ROUNDING * one.abs().max())
        for stage, one in maps.items()
    )


def _side(backbone: Backbone) -> int:
    """The side of the image in pixels."""
    stride = max(backbone.strides[backbone.deepest])
    if stride == backbone.patch_size:
        return _TRIAL_GRID * stride
    return TRIAL_SIZE if backbone.ndim == 2 else 2 * stride
