"""A few of many positions or values, and whether values differ."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def evenly_spaced(count: int, of: int) -> list[int]:
    """At most ``count`` of the positions 0 to ``of`` - 1: the first, the last, and others evenly between them."""
    count = min(count, of)
    return [k * (of - 1) // max(count - 1, 1) for k in range(count)]


def some_values(array: npt.NDArray[Any], count: int) -> npt.NDArray[Any]:
    """Values of an array of any shape: all of them, or ``count`` from random positions, always the same.

    Every n-th value would not do: where n is a multiple of an axis, they all lie in one slice.
    """
    flat = array.reshape(-1)
    return flat if flat.size <= count else flat[np.random.default_rng(0).integers(flat.size, size=count)]


def varies(values: npt.NDArray[Any], among: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Whether the chosen of N values differ by more than rounding, for each of B choices.

    A standard deviation does not tell: that of three times 0.1 is 1.4e-17.

    Args:
        values: (N,)
        among: (B, N) the choices.

    Returns:
        (B,)
    """
    low, high = np.where(among, values, np.inf).min(1), np.where(among, values, -np.inf).max(1)
    different: npt.NDArray[np.bool_] = high - low > 1e-9 * np.maximum(np.abs(low), np.abs(high))
    return different
