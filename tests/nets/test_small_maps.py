"""Convolutions of maps smaller than their kernel are computed in float32 under mixed precision on a CPU."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from densepath.nets.backbones import build_backbone
from densepath.nets.small_maps import compute_small_maps_in_float32


@pytest.mark.parametrize(
    ("convolution", "sides", "small"),
    [
        (nn.Conv3d(2, 2, 3, padding=1), (2, 4, 4), True),
        (nn.Conv3d(2, 2, 3, padding=1), (3, 4, 2), True),
        (nn.Conv3d(2, 2, 3, padding=1), (3, 3, 3), False),
        (nn.Conv3d(2, 2, 3, padding=2, dilation=2), (4, 5, 5), True),
        (nn.Conv3d(2, 2, 1), (1, 1, 1), False),
        (nn.ConvTranspose3d(2, 2, 3, padding=1), (2, 2, 2), True),
        (nn.Conv2d(2, 2, 3, padding=1), (4, 1), True),
        (nn.Conv2d(2, 2, 7, padding=3), (2, 2), False),
    ],
)
def test_maps_smaller_than_the_kernel_leave_mixed_precision(
    convolution: nn.Module, sides: tuple[int, ...], small: bool
) -> None:
    convolution = copy.deepcopy(convolution)
    compute_small_maps_in_float32(convolution)
    copied = copy.deepcopy(convolution)  # as methods copy their networks
    pixels = torch.zeros(1, 2, *sides)
    calls: tuple[tuple[nn.Module, tuple[torch.Tensor, ...], dict[str, torch.Tensor]], ...] = (
        (convolution, (pixels,), {}),
        (convolution, (), {"input": pixels}),
        (copied, (pixels,), {}),
    )
    for network, given, named in calls:
        with torch.autocast("cpu", torch.bfloat16):
            assert network(*given, **named).dtype == (torch.float32 if small else torch.bfloat16)
            assert torch.is_autocast_enabled("cpu")


def test_mixed_precision_continues_after_an_error() -> None:
    convolution = nn.Conv3d(2, 2, 3, padding=1)
    compute_small_maps_in_float32(convolution)
    with torch.autocast("cpu", torch.bfloat16):
        with pytest.raises(RuntimeError):
            convolution(torch.zeros(1, 3, 2, 2, 2))
        assert torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("side", [24, 32])
def test_gradients_of_a_small_volume_in_mixed_precision_are_those_in_float32(side: int) -> None:
    torch.manual_seed(0)
    exact = build_backbone("resnet10_3d", 1)
    mixed = copy.deepcopy(exact)
    compute_small_maps_in_float32(mixed)
    pixels = torch.randn(2, 1, side, side, side)
    for _ in range(3):
        del [torch.full((2**n,), 1e30) for n in range(8, 22)][:]  # what freed memory holds
        mixed.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            sum(each.float().mean() for each in mixed(pixels).values()).backward()
    sum(each.mean() for each in exact(pixels).values()).backward()
    for ours, theirs in zip(mixed.parameters(), exact.parameters(), strict=True):
        if theirs.grad is not None:
            assert (ours.grad - theirs.grad).norm() <= 0.6 * theirs.grad.norm() + 1e-6  # else noise of any size
