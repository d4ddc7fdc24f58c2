"""Colors of objects in a label map: those that touch differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

# They contrast with the pinks and purples of stained tissue, and with the red of missed objects.
PALETTE = ((0, 255, 64), (0, 255, 255), (255, 255, 0), (40, 90, 255), (255, 150, 0), (255, 255, 255), (255, 0, 255))
_NEAR = 4  # pixels: closer outlines could be taken for one


def neighbors(labels: npt.NDArray[np.integer]) -> dict[int, set[int]]:
    """Each label of a map (H, W), without 0, and the labels that lie within a few pixels of it."""
    found: dict[int, set[int]] = {int(label): set() for label in np.unique(labels[labels > 0])}
    shifts = [(y, x) for y in range(_NEAR + 1) for x in range(-_NEAR, _NEAR + 1) if (y, x) > (0, 0)]
    height, width = labels.shape
    for y, x in shifts:
        one = labels[: height - y, max(0, -x) : width - max(0, x)]
        other = labels[y:, max(0, x) : width + min(0, x)]
        meet = (one != other) & (one > 0) & (other > 0)
        for a, b in np.unique(np.stack((one[meet], other[meet]), axis=1), axis=0).tolist():
            found[a].add(b)
            found[b].add(a)
    return found


def near_boxes(boxes: Sequence[tuple[int, int, int, int]]) -> dict[int, set[int]]:
    """The position of each box (top, left, bottom, right), and of those that lie within a few pixels of it."""
    edges = np.array(boxes, int).reshape(-1, 4)
    near: dict[int, set[int]] = {}
    for position, (top, left, bottom, right) in enumerate(edges):
        rows = (edges[:, 0] - _NEAR < bottom) & (edges[:, 2] + _NEAR > top)
        columns = (edges[:, 1] - _NEAR < right) & (edges[:, 3] + _NEAR > left)
        near[position] = set(np.flatnonzero(rows & columns).tolist()) - {position}
    return near


def color_numbers(near: Mapping[int, set[int]], preferred: Mapping[int, int] | None = None) -> dict[int, int]:
    """The number of a color for each object, different from those of its neighbors.

    Args:
        near: object -> its neighbors.
        preferred: object -> the number that it has if no neighbor has it; by default the one of the fewest objects.
    """
    left, order = {key: set(others) for key, others in near.items()}, []
    while left:  # the object with the fewest neighbors is colored last: in a plane, six numbers are enough
        key = min(left, key=lambda each: len(left[each]))
        for other in left.pop(key):
            left[other].discard(key)
        order.append(key)
    numbers: dict[int, int] = {}
    times = [0] * len(PALETTE)
    for key in reversed(order):
        used = {numbers[other] for other in near[key] if other in numbers}
        free = [number for number in range(len(PALETTE)) if number not in used] or [len(PALETTE) + len(used)]
        wish = (preferred or {}).get(key)
        numbers[key] = min(free, key=lambda n: times[n % len(PALETTE)]) if wish is None or wish in used else wish
        times[numbers[key] % len(PALETTE)] += 1
    return numbers


def color_of(number: int) -> tuple[int, int, int]:
    """A color for each number; beyond the palette, darker ones."""
    turns, place = divmod(number, len(PALETTE))
    red, green, blue = PALETTE[place]
    return red >> turns, green >> turns, blue >> turns
