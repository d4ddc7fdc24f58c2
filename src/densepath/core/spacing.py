"""A few of many positions or values."""

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
