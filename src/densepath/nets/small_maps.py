"""Convolutions of maps smaller than their kernel, which bfloat16 makes wrong on CPUs."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

_OPEN: list[AbstractContextManager[Any] | None] = []  # contexts of the convolutions that are being computed


def compute_small_maps_in_float32(network: nn.Module) -> None:
    """Take convolutions of maps smaller than their kernel out of automatic mixed precision on the CPU.

    oneDNN's kernels for bfloat16 (AVX512_BF16, torch 2.15) read and write memory that is not theirs when they compute
    the gradient of the weights of a 3D convolution whose map has a side smaller than the kernel (such as 2 voxels and a
    kernel of 3), or of some 2D ones whose map has a side of 1: the gradient is noise of any size, or the process dies.
    Such maps are small, so that float32 costs little.

    Args:
        network: changed in place.
    """
    for module in network.modules():
        if isinstance(module, _ConvNd) and math.prod(module.kernel_size) > 1:
            module.register_forward_pre_hook(_enter, with_kwargs=True)
            module.register_forward_hook(_leave, always_call=True)


def _is_small(module: _ConvNd, sides: torch.Size) -> bool:
    if len(sides) < 3:
        return min(sides) == 1
    reach = (step * (side - 1) + 1 for step, side in zip(module.dilation, module.kernel_size, strict=True))
    return any(side < kernel for side, kernel in zip(sides, reach, strict=True))


def _enter(
    module: _ConvNd, given: tuple[Any, ...], named: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    pixels: Tensor | None = given[0] if given else named.get("input")
    if pixels is None or pixels.device.type != "cpu" or not _is_small(module, pixels.shape[2:]):
        _OPEN.append(None)
        return None
    context = torch.autocast("cpu", enabled=False)
    context.__enter__()
    _OPEN.append(context)
    return ((pixels.float(), *given[1:]), named) if given else ((), named | {"input": pixels.float()})


def _leave(module: nn.Module, given: tuple[Any, ...], output: Any) -> None:
    context = _OPEN.pop()
    if context is not None:
        context.__exit__(None, None, None)
