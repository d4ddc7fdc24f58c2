"""The objects that a detector found in an image."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

from densepath.annotations.outlines import encode_part, painting_key
from densepath.transfer.detection.instances import paste


class Window(NamedTuple):
    """A window of an image: its edges in pixels."""

    top: int
    left: int
    bottom: int
    right: int


@dataclass(eq=False)
class FoundObject:
    """An object in an image.

    Args:
        label: number of its class, from 1.
        score: from 0 to 1.
        top, left: where its mask lies in the image, in pixels.
        mask: (h, w) bool.
        box: x1 y1 x2 y2 in pixels, as the detector predicted it.
        whole: whether it was seen as a whole: False where a window cut it.
        windows: the windows that it was found in.
    """

    label: int
    score: float
    top: int
    left: int
    mask: npt.NDArray[np.bool_]
    box: tuple[float, float, float, float]
    whole: bool = True
    windows: list[Window] = field(default_factory=list)
    _seen: dict[tuple[Window, ...], int] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def bottom(self) -> int:
        """The end of the mask's rows."""
        return self.top + self.mask.shape[0]

    @cached_property
    def right(self) -> int:
        """The end of the mask's columns."""
        return self.left + self.mask.shape[1]

    @cached_property
    def area(self) -> int:
        """Pixels of the mask."""
        return int(np.count_nonzero(self.mask))

    @cached_property
    def centroid(self) -> tuple[float, float]:
        """x, y in pixels; the image's upper left corner is 0, 0."""
        rows, columns = np.nonzero(self.mask)
        return self.left + float(columns.mean()) + 0.5, self.top + float(rows.mean()) + 0.5

    def part(self, top: int, left: int, bottom: int, right: int) -> npt.NDArray[np.bool_]:
        """The mask in a rectangle of the image, (bottom - top, right - left); False outside the object."""
        out = np.zeros((bottom - top, right - left), bool)
        y1, x1, y2, x2 = max(top, self.top), max(left, self.left), min(bottom, self.bottom), min(right, self.right)
        if y1 < y2 and x1 < x2:
            inside = self.mask[y1 - self.top : y2 - self.top, x1 - self.left : x2 - self.left]
            out[y1 - top : y2 - top, x1 - left : x2 - left] = inside
        return out

    def seen(self, windows: Sequence[Window]) -> int:
        """Pixels of the mask that lie in windows: counted once, as each find is compared with all those near it."""
        if (key := tuple(windows)) not in self._seen:
            inside = np.zeros(self.mask.shape, bool)
            for window in windows:
                y1, x1 = max(window.top - self.top, 0), max(window.left - self.left, 0)
                inside[y1 : max(window.bottom - self.top, 0), x1 : max(window.right - self.left, 0)] = True
            self._seen[key] = int(np.count_nonzero(self.mask & inside))
        return self._seen[key]

    def result(self, size: tuple[int, int], category_ids: Sequence[int], masks: bool) -> dict[str, Any]:
        """The object in COCO's results format, without an image id; ``size`` is the image's height and width."""
        x1, y1, x2, y2 = self.box
        found = {
            "category_id": category_ids[self.label - 1],
            "score": self.score,
            "bbox": [x1, y1, x2 - x1, y2 - y1],
        }
        return found | ({"segmentation": encode_part(self.mask, self.top, self.left, size)} if masks else {})


def painting_order(numbered: Iterable[tuple[int, FoundObject]]) -> list[tuple[int, FoundObject]]:
    """Objects in the order in which they are painted, see :func:`~densepath.annotations.outlines.painting_key`.

    Args:
        numbered: the objects with their numbers, from 1 for the best.
    """
    return sorted(numbered, key=lambda pair: painting_key(pair[1].area, pair[1].score, pair[0]))


def found_objects(
    detections: Mapping[str, Tensor],
    size: tuple[int, int],
    score: float = 0.0,
    top: int = 0,
    left: int = 0,
    empty: bool = False,
) -> list[FoundObject]:
    """The objects of a window or an image, best first.

    Args:
        detections: float32 on the CPU: boxes (N, 4) in the window's pixels, scores (N,), labels (N,) from 1, and
            optionally masks (N, M, M); without them, objects are boxes.
        size: height and width of the window.
        score: the lowest score.
        top, left: where the window lies in the image.
        empty: whether objects without a pixel are kept: average precision counts them.
    """
    boxes, scores, labels = (detections[name].tolist() for name in ("boxes", "scores", "labels"))
    masks = detections["masks"].numpy() if "masks" in detections else [None] * len(boxes)
    objects = []
    for box, each, label, mask in zip(boxes, scores, labels, masks, strict=True):
        if each < score:
            continue
        row, column, pasted = paste(np.ones((1, 1), np.float32) if mask is None else mask, box, size)
        if not empty and not pasted.any():
            continue
        x1, y1, x2, y2 = box
        place = (x1 + left, y1 + top, x2 + left, y2 + top)
        objects.append(FoundObject(int(label), each, row + top, column + left, pasted, place))
    return objects


def coco_results(
    detections: Mapping[str, Tensor], image_id: int, size: tuple[int, int], category_ids: Sequence[int]
) -> list[dict[str, Any]]:
    """The detections in one image in COCO's results format, best first.

    Args:
        detections, size: as for :func:`found_objects`.
        category_ids: the category ids of the labels 1, 2, ...
    """
    objects, masks = found_objects(detections, size, empty=True), "masks" in detections
    return [{"image_id": image_id, **each.result(size, category_ids, masks)} for each in objects]
