"""Colors of objects in a label map: those that touch differ."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

# They contrast with the pinks and purples of stained tissue, and with the red of missed objects.
PALETTE = ((0, 255, 64), (0, 255, 255), (255, 255, 0), (40, 90, 255), (255, 150, 0), (255, 255, 255), (255, 0, 255))
Box = tuple[int, int, int, int]  # top, left, bottom, right
_NEAR = 4  # pixels: closer outlines could be taken for one


def neighbors(labels: npt.NDArray[np.integer]) -> dict[int, set[int]]:
    """Each label of a map (H, W), without 0, and the labels that lie within a few pixels of it."""
    found: dict[int, set[int]] = {int(label): set() for label in np.unique(labels[labels > 0])}
    padded = np.pad(labels, _NEAR)
    inside = padded[_NEAR - 1 : 1 - _NEAR, _NEAR - 1 : 1 - _NEAR]  # with a frame of one pixel
    sides = inside[:-2, 1:-1], inside[2:, 1:-1], inside[1:-1, :-2], inside[1:-1, 2:]
    rim = (labels > 0) & np.logical_or.reduce([labels != side for side in sides])  # what is near is near to a rim
    rows, columns = np.nonzero(rim)
    own = labels[rim]
    for y in range(_NEAR + 1):
        for x in range(-_NEAR, _NEAR + 1):
            if (y, x) > (0, 0):
                other = padded[rows + _NEAR + y, columns + _NEAR + x]
                meet = (other != own) & (other > 0)
                for a, b in np.unique(np.stack((own[meet], other[meet]), axis=1), axis=0).tolist():
                    found[a].add(b)
                    found[b].add(a)
    return found


def near_boxes(boxes: Sequence[Box]) -> dict[int, set[int]]:
    """The position of each box (top, left, bottom, right), and of those that lie within a few pixels of it."""
    if not boxes:
        return {}
    side = max(_NEAR, int(np.median([(bottom - top, right - left) for top, left, bottom, right in boxes])))
    squares: dict[tuple[int, int], list[int]] = defaultdict(list)  # the boxes that touch a square of the image
    for position, box in enumerate(boxes):
        for square in _squares(box, side):
            squares[square].append(position)
    near: dict[int, set[int]] = {}
    for position, (top, left, bottom, right) in enumerate(boxes):
        around = top - _NEAR, left - _NEAR, bottom + _NEAR, right + _NEAR
        others = {other for square in _squares(around, side) for other in squares.get(square, ())} - {position}
        near[position] = {other for other in others if _overlap(around, boxes[other])}
    return near


def _squares(box: Box, side: int) -> Iterator[tuple[int, int]]:
    top, left, bottom, right = box
    for row in range(top // side, bottom // side + 1):
        for column in range(left // side, right // side + 1):
            yield row, column


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and one[2] > other[0] and one[1] < other[3] and one[3] > other[1]


def color_numbers(near: Mapping[int, set[int]], preferred: Mapping[int, int] | None = None) -> dict[int, int]:
    """The number of a color for each object, different from those of its neighbors, in linear time.

    Args:
        near: object -> its neighbors.
        preferred: object -> the number that it has if no neighbor has it; by default the one of the fewest objects.
    """
    numbers: dict[int, int] = {}
    times = [0] * len(PALETTE)
    for key in reversed(_by_neighbors(near)):
        used = {numbers[other] for other in near[key] if other in numbers}
        free = [number for number in range(len(PALETTE)) if number not in used] or [len(PALETTE) + len(used)]
        wish = (preferred or {}).get(key)
        numbers[key] = min(free, key=lambda n: times[n % len(PALETTE)]) if wish is None or wish in used else wish
        times[numbers[key] % len(PALETTE)] += 1
    return numbers


def _by_neighbors(near: Mapping[int, set[int]]) -> list[int]:
    """The objects in an order in which each has the fewest neighbors among those after it.

    Colored from the last to the first, six numbers are enough in a plane.
    """
    left = {key: len(others) for key, others in near.items()}
    with_count: dict[int, dict[int, None]] = defaultdict(dict)  # in a fixed order
    for key, count in left.items():
        with_count[count][key] = None
    order: list[int] = []
    count = 0
    while left:
        count = max(count - 1, 0)  # a neighbor of the last one has one less now
        while not with_count[count]:
            count += 1
        key = next(iter(with_count[count]))
        del with_count[count][key], left[key]
        order.append(key)
        for other in near[key] & left.keys():
            del with_count[left[other]][other]
            left[other] -= 1
            with_count[left[other]][other] = None
    return order


def color_of(number: int) -> tuple[int, int, int]:
    """A color for each number; beyond the palette, darker ones."""
    turns, place = divmod(number, len(PALETTE))
    red, green, blue = PALETTE[place]
    return red >> turns, green >> turns, blue >> turns
