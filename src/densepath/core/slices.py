"""Slices of volumes in axes S, A, R, as a radiologist looks at them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

AXIAL, CORONAL, SAGITTAL = range(3)  # the axis that a slice is perpendicular to


def upright(plane: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A slice (h, w, ...) with the anterior or superior side on top, and the right or anterior side on the left."""
    return plane[::-1, ::-1]


def nearest(size: int, length: int) -> npt.NDArray[np.int64]:
    """Of ``length`` pixels or voxels along an axis, those in which the centers of ``size`` pixels lie."""
    places: npt.NDArray[np.int64] = (2 * np.arange(size) + 1) * length // (2 * size)
    return places


def slice_of(values: npt.NDArray[Any], axis: int, position: int, size: Sequence[int] = ()) -> npt.NDArray[Any]:
    """An upright slice of a volume.

    Args:
        values: (D, H, W, ...).
        axis: AXIAL, CORONAL or SAGITTAL.
        position: its index along the axis.
        size: (height, width) of the result, to the nearest voxel; default: a pixel for each voxel.
    """
    plane = upright(np.take(values, position, axis))
    if not size:
        return plane
    rows, columns = (nearest(n, m) for n, m in zip(size, plane.shape, strict=False))
    return plane[np.ix_(rows, columns)]


def size_in_mm(shape: Sequence[int], spacing: Sequence[float], axis: int, scale: float) -> tuple[int, int]:
    """Height and width in pixels of a slice of a volume (D, H, W) with ``scale`` pixels per mm in both directions."""
    height, width = (max(1, round(scale * shape[k] * spacing[k])) for k in range(3) if k != axis)
    return height, width
