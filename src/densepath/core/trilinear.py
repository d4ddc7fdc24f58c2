"""Trilinear samples of one volume on a CPU: twice as fast as ``F.grid_sample``, which takes one voxel after another."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

_MARGIN = 0.01  # voxels, more than rounding errors of positions
_CHUNK = 2**14  # positions that are sampled at a time: about thirty arrays of them stay in the processor's cache


def sample_trilinear(x: Tensor, map_: Tensor, size: Sequence[int]) -> Tensor:
    """The result of ``F.grid_sample`` with ``padding_mode="border"`` and ``align_corners=False``.

    Args:
        x: (C, D, H, W) of float32 or float64, on the CPU.
        map_: (3, 4) from output to input coordinates.
        size: the output's spatial size.

    Returns:
        (C, *size) of the type of x.
    """
    volumes = x.contiguous().numpy()
    shape, dtype = volumes.shape[1:], volumes.dtype
    strides = (shape[1] * shape[2], shape[2], 1)
    terms = _terms(map_.double().numpy(), shape, size, dtype)
    corners = [
        sum(stride for stride, n, one in zip(strides, shape, which, strict=True) if one and n > 1)
        for which in itertools.product((False, True), repeat=3)
    ]
    out = np.empty((len(x), *size), dtype)
    exact = math.prod(shape) < 2**24  # floats count the voxels exactly, and are faster than integers
    bounds = [[sum(float(f(term)) for term in own) for f in (np.min, np.max)] for own in terms]
    lines = max(1, _CHUNK // (size[1] * size[2]))
    for start in range(0, size[0], lines):
        rows = slice(start, start + lines)
        index: Any = 0
        shares = []
        for n, (along_z, along_y, along_x), (least, most) in zip(shape, terms, bounds, strict=True):
            place = along_z[rows] + (along_y + along_x)
            within = least > _MARGIN and most < n - 1 - _MARGIN  # where clipping takes half of the time
            if not within:
                np.clip(place, 0, n - 1, out=place)
            low = np.floor(place)
            if not within:
                np.minimum(low, max(0, n - 2), out=low)
            place -= low
            shares.append(place)
            index = index * n + (low if exact else low.astype(np.int64))
        index = index.astype(np.int32 if exact else np.int64).astype(np.intp)
        for volume, result in zip(volumes, out, strict=True):
            flat = volume.reshape(-1)
            values = [flat[corner:].take(index) for corner in corners]
            for share in shares:  # the first half of the corners lies below the second one along z, then y, then x
                half = len(values) // 2
                for low, high in zip(values[:half], values[half:], strict=True):
                    high -= low
                    high *= share
                    low += high
                values = values[:half]
            result[rows] = values[0]
    return torch.from_numpy(out)


def _terms(map_: Any, shape: Sequence[int], size: Sequence[int], dtype: Any) -> list[list[Any]]:
    """For each axis of the input what each axis of the output adds to its position, in voxels: it varies along that
    axis and has the size 1 along the others."""
    made = []
    for axis, n in enumerate(shape):
        row = map_[2 - axis] * n / 2
        own = [row[2 - a] * ((2 * np.arange(m) + 1) / m - 1) for a, m in enumerate(size)]
        own[0] = own[0] + row[3] + (n - 1) / 2
        made.append([term.astype(dtype).reshape([-1 if b == a else 1 for b in range(3)]) for a, term in enumerate(own)])
    return made
