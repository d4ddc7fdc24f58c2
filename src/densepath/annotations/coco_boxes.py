"""Boxes of COCO beside the outlines of the same objects: which differences are conventions, and which are errors."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

_LEAST_OVERLAP = 0.7  # IoU of a box and the bounds of its outline; boxes drawn by hand have 0.8 and more
_LEAST_DISTANCE = 2.0  # pixels between their sides that always pass: conventions differ by 1, small objects are small

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


def corners_of(boxes: Floats) -> Floats:
    """x y width height (N, 4) as x1 y1 x2 y2."""
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)


def upright(box: Sequence[float], degrees: float, height: int, width: int) -> list[float]:
    """The box x y width height, within its image, that bounds a box which is turned around its center."""
    x, y, wide, high = box
    cosine, sine = abs(math.cos(math.radians(degrees))), abs(math.sin(math.radians(degrees)))
    half = (wide * cosine + high * sine) / 2, (wide * sine + high * cosine) / 2
    spans = ((x + wide / 2, half[0], width), (y + high / 2, half[1], height))
    (x1, x2), (y1, y2) = ((max(0.0, mid - side), min(float(most), mid + side)) for mid, side, most in spans)
    return [x1, y1, x2 - x1, y2 - y1]


def disagree(written: Floats, bounds: Floats, limits: Floats) -> Flags:
    """Whether boxes and outlines clearly contradict each other.

    A box agrees with an outline that it bounds up to a few pixels or 30% of their union. It may also be larger, if it
    contains the outline: amodal boxes are those of a whole object whose outline shows only the visible part, and tools
    that turn images give the bounds of the turned box. Numbers that are x1 y1 x2 y2 contain the outline as x y width
    height, too: they disagree if only so they bound it, or contain it without leaving the image.

    Args:
        written: (N, 4) x y width height.
        bounds: (N, 4) x1 y1 x2 y2 of the outlines.
        limits: (N, 4) width height width height of the images.
    """
    boxes = corners_of(written)
    inside = bounds.clip(0, limits)
    contains, contains_as_corners, in_image = (
        _beyond(outer, inner) <= _LEAST_DISTANCE
        for outer, inner in ((boxes, inside), (written, inside), (limits * (0, 0, 1, 1), boxes))
    )
    larger = contains & (in_image | ~contains_as_corners)
    return ~_alike(boxes, bounds, limits) & (~larger | _fits_as_corners(written, bounds, limits))


def are_corners(written: Floats, bounds: Floats, limits: Floats) -> bool:
    """Whether the boxes of a file were written as x1 y1 x2 y2. Arguments as for :func:`disagree`.

    It explains most of the boxes that do not bound their outlines, and more boxes than x y width height does.
    """
    usual = _alike(corners_of(written), bounds, limits)
    corners = _fits_as_corners(written, bounds, limits)
    only = int((corners & ~usual).sum())
    return 2 * only > int((~usual).sum()) and only > int((usual & ~corners).sum())


def leave_images(written: Floats, limits: Floats) -> bool:
    """Whether boxes without outlines were written as x1 y1 x2 y2: so all lie in their images, otherwise some do not."""
    if (written[:, 2:] <= written[:, :2]).any() or (written[:, 2:] > limits[:, 2:] + 1).any():
        return False
    return bool((corners_of(written) > limits + _LEAST_DISTANCE).any())


def are_shares(written: Floats) -> bool:
    """Whether boxes without outlines are shares of the image, from 0 to 1, as YOLO has them."""
    return bool(len(written) and (written <= 1).all())


def _fits_as_corners(written: Floats, bounds: Floats, limits: Floats) -> Flags:
    return np.logical_and((written[:, 2:] > written[:, :2]).all(axis=1), _alike(written, bounds, limits))


def _alike(boxes: Floats, bounds: Floats, limits: Floats) -> Flags:
    """Whether boxes (N, 4) and bounds (N, 4), both x1 y1 x2 y2, are about the same within their images."""
    first, second = boxes.clip(0, limits), bounds.clip(0, limits)
    low, high = np.maximum(first, second)[:, :2], np.minimum(first, second)[:, 2:]
    common = (high - low).clip(0).prod(axis=1)
    whole = sum((part[:, 2:] - part[:, :2]).clip(0).prod(axis=1) for part in (first, second)) - common
    near: Flags = np.abs(first - second).max(axis=1) <= _LEAST_DISTANCE
    return near | (common >= _LEAST_OVERLAP * whole)


def _beyond(outer: Floats, inner: Floats) -> Floats:
    """By how many pixels boxes (N, 4) lie outside of others at most; both x1 y1 x2 y2."""
    beyond: Floats = np.concatenate([outer[:, :2] - inner[:, :2], inner[:, 2:] - outer[:, 2:]], axis=1).max(axis=1)
    return beyond
