"""Objects of large images, found in overlapping windows and merged without seams."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator

import numpy as np

from densepath.core.errors import UserError
from densepath.sources.slides.resolution import Spacing
from densepath.transfer.detection.found import FoundObject, Window

LEAST_WINDOW = 32  # pixels
_SAME_SCALE = 1.1  # µm per pixel that differ less are the same: training images were resized by more
_SAME = 0.5  # least overlap of two finds of one object, where both windows see it
_AT_BORDER = 0.02  # share of a window: an object that ends so close to its border may be cut by it


def check_search(score: float, window: int | None, overlap: float, spacing: float | None = None) -> None:
    """Check how objects are searched for.

    Raises:
        UserError: a number is out of its range.
    """
    if not 0 <= score <= 1:
        raise UserError(f"score is {score}; give a number from 0 to 1")
    if window is not None and window != 0 and window < LEAST_WINDOW:
        raise UserError(f"window is {window}; give {LEAST_WINDOW} pixels or more, or 0 for none")
    if not 0 <= overlap < 1:
        raise UserError(f"overlap is {overlap}; give a number from 0 up to, but not including, 1")
    if spacing is not None and not 0 < spacing < math.inf:
        raise UserError(f"spacing is {spacing}; give µm per pixel")


def scale_of(spacing: Spacing | None, trained: float | None) -> tuple[float, float]:
    """How many pixels of an image, along y and x, are as long as one of the training images.

    Args:
        spacing: the image's µm per pixel along y and x; None if unknown.
        trained: those of the training images; if unknown, they are taken to be the larger ones of the image.

    Returns:
        1 along an axis whose µm per pixel are unknown, or differ by less than 10%.
    """
    if spacing is None:
        return 1.0, 1.0
    y, x = ((trained or max(spacing)) / own for own in spacing)
    return (1.0 if 1 / _SAME_SCALE < y < _SAME_SCALE else y), (1.0 if 1 / _SAME_SCALE < x < _SAME_SCALE else x)


def window_sides(scale: tuple[float, float], default: int, given: int | None = None) -> tuple[int, int]:
    """Height and width of windows in pixels of an image, equal in µm; 0 for none.

    Args:
        scale: how many pixels along y and x are as long as one of the training images.
        default: the side in pixels of the training images.
        given: the shorter side in pixels of the image, whatever its scale; None for the default.
    """
    if given is not None:
        down, across = (round(given * each / min(scale)) for each in scale)
    elif not default:
        return 0, 0
    else:
        down, across = (default if each == 1 else max(LEAST_WINDOW, round(default * each)) for each in scale)
    return down, across


def windows_of(size: tuple[int, int], sides: tuple[int, int], overlap: float) -> list[Window]:
    """The windows of an image, row by row, evenly spread and at most as high and wide as ``sides``.

    Args:
        size: height and width of the image in pixels.
        sides: height and width of a window in pixels.
        overlap: least share of a window that the next one covers, from 0 up to, but not including, 1.
    """
    rows, columns = (_starts(length, side, overlap) for length, side in zip(size, sides, strict=True))
    height, width = map(min, size, sides)
    return [Window(top, left, top + height, left + width) for top in rows for left in columns]


def _starts(length: int, side: int, overlap: float) -> list[int]:
    if length <= side:
        return [0]
    step = max(1, int(side * (1 - overlap)))
    count = -(-(length - side) // step) + 1
    return [round(k * (length - side) / (count - 1)) for k in range(count)]


def merge(found: Iterable[tuple[Window, list[FoundObject]]], size: tuple[int, int]) -> list[FoundObject]:
    """The objects of an image, best first. Arguments as for :func:`merged`."""
    return sorted(merged(found, size), key=lambda each: -each.score)


def merged(found: Iterable[tuple[Window, list[FoundObject]]], size: tuple[int, int]) -> Iterator[FoundObject]:
    """The objects of an image from those of its windows, each as soon as no window follows that may see it.

    Finds of two windows belong to one object if they are of one class and overlap by half of the smaller one, in the
    area that both windows see. Finds of one window belong to different objects; of two that overlap each other, only
    the better match counts, see :func:`_matches`. A whole find replaces those that are cut; of two whole finds the
    better one stays; finds that are all cut are joined.

    Args:
        found: the windows, row by row, and the objects in each, in the image's coordinates.
        size: height and width of the image.
    """
    index, row = _Index(), 0
    for window, objects in found:
        if window.top > row:
            row = window.top
            yield from index.take_above(row)
        own, joined = _Index(objects), []
        for new in objects:
            new.windows, new.whole = [window], not _is_cut(new, window, size)
        for new in objects:
            # Further parts in this window may belong to one that was joined, whose windows it is not among yet.
            before = [old for old in index.near(new) if window not in old.windows]
            same = _matches(new, before, own.near(new))
            whole = [old for old in same if old.whole]
            stays = bool(whole) and (not new.whole or max(old.score for old in whole) >= new.score)
            for old in same:
                # What is cut stays, too, if it belongs to another object than the whole find that replaces the new one.
                if not (stays and (old.whole or not any(_common(old, each) for each in whole))):
                    index.remove(old)
            if stays:
                continue
            if same and not new.whole:
                new = _joined([new, *same])
                joined.append(new)
            index.add(new)
        for each in joined:
            each.windows.append(window)
    yield from index


def _is_cut(found: FoundObject, window: Window, size: tuple[int, int]) -> bool:
    """Whether a border of the window that is not one of the image may cut the object."""
    # in pixels: boxes of a detector are not exact
    down, across = (max(2.0, _AT_BORDER * side) for side in (window.bottom - window.top, window.right - window.left))
    return bool(
        (window.top > 0 and found.top - window.top < down)
        or (window.left > 0 and found.left - window.left < across)
        or (window.bottom < size[0] and window.bottom - found.bottom < down)
        or (window.right < size[1] and window.right - found.right < across)
    )


def _matches(new: FoundObject, before: list[FoundObject], objects: list[FoundObject]) -> list[FoundObject]:
    """The finds of previous windows that are of one object with a new one.

    Where a small object lies in a large one of its class, the finds of both in one window overlap that of either in
    another window. Of two such finds, only the one with the larger share of common pixels is a match.

    Args:
        new: a find.
        before: those of previous windows that may overlap it, each of another object.
        objects: those of its window that may overlap it.
    """
    shares = {old: share for old in before if (share := _share(old, new))}
    return [
        old
        for old, share in shares.items()
        if not any(shares[other] > share and _are_overlapping(old, other) for other in shares)
        and not any(_are_overlapping(new, other) and _share(old, other) > share for other in objects)
    ]


def _share(old: FoundObject, new: FoundObject) -> float:
    """Share of the larger of two finds that both have, as far as the windows of both see it.

    Returns:
        0 if they are of two classes, or overlap by no more than half of the smaller one.
    """
    both = _common(old, new)
    if not both:
        return 0.0
    seen = old.seen(new.windows), new.seen(old.windows)
    return both / max(seen) if both > _SAME * min(seen) else 0.0


def _are_overlapping(first: FoundObject, second: FoundObject) -> bool:
    """Whether two finds of one class overlap by more than half of the smaller one."""
    return _common(first, second) > _SAME * min(first.area, second.area)


def _common(first: FoundObject, second: FoundObject) -> int:
    """Pixels that two finds of one class have in common; 0 if they are of two classes."""
    if first.label != second.label or first.top >= second.bottom or second.top >= first.bottom:
        return 0
    if first.left >= second.right or second.left >= first.right:
        return 0
    top, left = max(first.top, second.top), max(first.left, second.left)
    bottom, right = min(first.bottom, second.bottom), min(first.right, second.right)
    one, other = (
        each.mask[top - each.top : bottom - each.top, left - each.left : right - each.left] for each in (first, second)
    )
    return int(np.count_nonzero(one & other))


def _joined(parts: list[FoundObject]) -> FoundObject:
    """One object from parts that are all cut. The window of the first is left out of its windows."""
    top, left = min(part.top for part in parts), min(part.left for part in parts)
    bottom, right = max(part.bottom for part in parts), max(part.right for part in parts)
    mask = np.zeros((bottom - top, right - left), bool)
    for part in parts:
        mask |= part.part(top, left, bottom, right)
    lefts, tops, rights, bottoms = zip(*(part.box for part in parts), strict=True)
    box = (min(lefts), min(tops), max(rights), max(bottoms))
    best = max(parts, key=lambda part: part.score)
    seen = [window for part in parts[1:] for window in part.windows]
    return FoundObject(best.label, best.score, top, left, mask, box, False, seen)


class _Index:
    """Objects by the squares of the image that they touch."""

    _SIDE = 64  # pixels: few objects of the size of nuclei touch a square, and large ones few squares

    def __init__(self, objects: Iterable[FoundObject] = ()) -> None:
        self._objects: dict[int, FoundObject] = {}
        self._squares: dict[tuple[int, int], dict[int, FoundObject]] = defaultdict(dict)
        for found in objects:
            self.add(found)

    def __iter__(self) -> Iterator[FoundObject]:
        return iter(self._objects.values())

    def add(self, found: FoundObject) -> None:
        self._objects[id(found)] = found
        for square in self._touched(found.top, found.left, found.bottom, found.right):
            self._squares[square][id(found)] = found

    def remove(self, found: FoundObject) -> None:
        del self._objects[id(found)]
        for square in self._touched(found.top, found.left, found.bottom, found.right):
            del self._squares[square][id(found)]
            if not self._squares[square]:  # a slide has millions of squares
                del self._squares[square]

    def take_above(self, row: int) -> list[FoundObject]:
        """Remove the objects that end above a row of pixels, and return them."""
        above = [found for found in self if found.bottom <= row]
        for found in above:
            self.remove(found)
        return above

    def near(self, found: FoundObject) -> list[FoundObject]:
        """The objects that may overlap another one, or that object itself."""
        touched = self._touched(found.top, found.left, found.bottom, found.right)
        return list({k: v for square in touched for k, v in self._squares.get(square, {}).items()}.values())

    def _touched(self, top: int, left: int, bottom: int, right: int) -> Iterator[tuple[int, int]]:
        for row in range(top // self._SIDE, (bottom - 1) // self._SIDE + 1):
            for column in range(left // self._SIDE, (right - 1) // self._SIDE + 1):
                yield row, column
