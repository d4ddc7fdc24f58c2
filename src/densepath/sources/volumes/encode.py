"""Values of any type as 16-bit integers with a slope and an intercept."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from densepath.sources.volumes.volume import Channel

_LOW, _HIGH = -(2**15), 2**15 - 1
_STEPS = _HIGH - _LOW
Stored = npt.NDArray[np.int16]


def encode(channel: Channel) -> tuple[Stored, float, float]:
    """A channel (X, Y, Z) as 16-bit integers.

    Whole numbers that fit are stored as they are; if their slope and intercept are whole numbers too, as those of CT,
    what is stored is the value itself (Hounsfield units), with slope 1. Other whole numbers whose range is that of 16
    bits are shifted. Of other numbers the range from the smallest to the largest is divided into 65,535 steps: the
    error is at most half a step.

    Returns:
        The stored numbers, and slope and intercept with which ``slope * stored + intercept`` is the value.
    """
    values, slope, intercept = channel.values, channel.slope, channel.intercept
    low, high = values.min(), values.max()
    whole = values.dtype.kind in "iub" or _is_whole(values)
    if whole:
        low, high = int(low), int(high)
        ends = [slope * end + intercept for end in (low, high)]
        if float(slope).is_integer() and float(intercept).is_integer() and min(ends) >= _LOW and max(ends) <= _HIGH:
            if (slope, intercept) == (1, 0):
                return values.astype(np.int16), 1.0, 0.0
            return _each_slice(values, lambda part: part.astype(np.int64) * int(slope) + int(intercept)), 1.0, 0.0
        if low >= _LOW and high <= _HIGH:
            return values.astype(np.int16), slope, intercept
    exact = whole and high - low <= _STEPS
    low, high = float(low), float(high)
    step = 1.0 if exact else high / _STEPS - low / _STEPS or 1.0
    stored = _each_slice(values, lambda part: np.rint((part.astype(np.float64) - low) / step).clip(0, _STEPS) + _LOW)
    return stored, slope * step, slope * (low - step * _LOW) + intercept


def _is_whole(values: npt.NDArray[Any]) -> bool:
    return all(bool((np.rint(part) == part).all()) for part in np.moveaxis(values, -1, 0))


def _each_slice(values: npt.NDArray[Any], function: Any) -> Stored:
    """A function of an array, slice by slice: its wide intermediate numbers are never those of a whole volume."""
    out = np.empty(values.shape, np.int16)
    for k in range(values.shape[2]):
        out[..., k] = function(values[..., k])
    return out
