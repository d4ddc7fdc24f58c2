"""Resizing a part of an image, as Pillow does it in floating point, in half the time.

Each output pixel is a weighted sum of a few pixels along each axis. So the sums of some neighboring output pixels are
a small matrix product, which NumPy's library computes on one thread: readers are threads already.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch

from densepath.core.filters import axis_taps

_PART = 8  # output pixels of a matrix product: with more, most weights are zero
_SINGLE = 2**18  # multiplications up to which OpenBLAS starts no threads
_KEPT = 16  # matrices of 0.1 MB: in many slides tiles lie in the same way on the pixels

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


def resized(pixels: Pixels, start: Sequence[float], end: Sequence[float], size: Sequence[int]) -> Pixels:
    """A rectangle of an image, resampled: bicubic (a = -0.5), antialiased, rounded once.

    Args:
        pixels: (H, W, C).
        start, end: y, x of two corners of the rectangle in pixels; it lies in the image.
        size: height and width of the result in pixels.

    Returns:
        (*size, C).
    """
    height, width, channels = pixels.shape
    made_height, made_width = size
    rows = pixels.reshape(height, -1)
    first, weights = _weights(height, start[0], end[0], made_height)
    count, part, taps = weights.shape
    shrunk = np.empty((count * part, width * channels), np.float32)
    at_once = max(1, _SINGLE // (part * taps))
    for number, begin in enumerate(first):
        used, made = rows[begin : begin + taps].astype(np.float32), shrunk[number * part : (number + 1) * part]
        for left in range(0, width * channels, at_once):
            np.matmul(weights[number], used[:, left : left + at_once], out=made[:, left : left + at_once])
    first, own = _for_channels(width, start[1], end[1], made_width, channels)
    count, taps, part = len(own), own.shape[1] // channels, own.shape[2] // channels
    out = np.empty((made_height, count * part * channels), np.float32)
    at_once = max(1, _SINGLE // own[0].size)
    for number, begin in enumerate(first):
        used = shrunk[:made_height, begin * channels : (begin + taps) * channels]
        made = out[:, number * part * channels : (number + 1) * part * channels]
        for top in range(0, made_height, at_once):
            np.matmul(used[top : top + at_once], own[number], out=made[top : top + at_once])
    out = out[:, : made_width * channels]
    np.rint(out, out=out)
    return out.clip(0, 255, out=out).astype(np.uint8).reshape(made_height, made_width, channels)


@lru_cache(_KEPT)
def _for_channels(length: int, low: float, high: float, size: int, channels: int) -> tuple[list[int], Floats]:
    """The first pixels, and matrices (parts, K x C, n x C): channels lie next to each other, each with the weights."""
    first, weights = _weights(length, low, high, size)
    count, part, taps = weights.shape
    own = np.zeros((count, taps, channels, part, channels), np.float32)
    for channel in range(channels):
        own[:, :, channel, :, channel] = weights.transpose(0, 2, 1)
    return first, own.reshape(count, taps * channels, part * channels)


@lru_cache(_KEPT)
def _weights(length: int, low: float, high: float, size: int) -> tuple[list[int], Floats]:
    """Of each part of an axis of the output the first of K input pixels that it needs, and weights (parts, n, K).

    The last part may reach beyond the output.
    """
    ends = 2 * torch.tensor([[low], [high]], dtype=torch.float64) / length - 1
    taps = axis_taps(ends[0], ends[1], size, "bicubic", torch.tensor([length]), ends.device)
    positions, weights = (each[0].numpy() for each in taps)
    starts = np.arange(0, size, _PART)
    reach = int((np.maximum.reduceat(positions.max(1), starts) - positions[starts].min(1)).max()) + 1
    first = np.minimum(positions[starts].min(1), length - reach)
    made = np.zeros((len(starts) * _PART, reach))
    rows = np.arange(size)[:, None]
    np.add.at(made, (rows, positions - first[rows // _PART]), weights)
    return first.tolist(), made.reshape(len(starts), _PART, reach).astype(np.float32)
