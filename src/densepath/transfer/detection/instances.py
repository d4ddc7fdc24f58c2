"""Converts detections to instances of the whole image: pasted, run-length encoded masks in COCO's results format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from pycocotools import mask as rle

from densepath.annotations.outlines import paint


def paste(
    mask: npt.NDArray[np.float32], box: Sequence[float], size: tuple[int, int]
) -> tuple[int, int, npt.NDArray[np.bool_]]:
    """The pixels of a box's mask in its image.

    Args:
        mask: (M, M) probabilities that cover the box from edge to edge; values between their centers are
            interpolated linearly.
        box: x1 y1 x2 y2 in the image's pixels.
        size: height, width of the image.

    Returns:
        Top, left, and (h, w) bool: the pixels whose probability at the center is at least 0.5.
    """
    (x1, y1, x2, y2), (height, width) = box, size
    # Only the pixels whose centers lie in the box.
    left, right, across = _sample_points(x1, x2, width, len(mask))
    top, bottom, down = _sample_points(y1, y2, height, len(mask))
    if left >= right or top >= bottom:
        return 0, 0, np.zeros((0, 0), bool)
    return top, left, _interpolate(_interpolate(mask, down).T, across).T >= 0.5


def _sample_points(
    low: float, high: float, pixels: int, count: int
) -> tuple[int, int, tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]]:
    """The pixels (start, stop) of an axis whose centers lie in a box, and for each center the index of the mask value
    before it and the fraction of the distance to the next one."""
    start, stop = max(round(low), 0), min(round(high), pixels)
    place = (np.arange(start, stop) + 0.5 - low) / max(high - low, 1e-9) * count - 0.5
    place = place.clip(0, count - 1)
    index = place.astype(np.int64)
    return start, stop, (index, (place - index).astype(np.float32))


def _interpolate(
    values: npt.NDArray[np.float32], places: tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]
) -> npt.NDArray[np.float32]:
    """Rows of (M, C), linearly interpolated at N places: (N, C)."""
    index, fraction = places
    before = values[index]
    after = values[np.minimum(index + 1, len(values) - 1)]
    between: npt.NDArray[np.float32] = before + fraction[:, None] * (after - before)
    return between


def label_map_of(results: Sequence[Mapping[str, Any]], size: tuple[int, int], score: float) -> npt.NDArray[np.int32]:
    """The detections in one image as a label map (H, W): 0 for background, smaller ones on top, as of true objects,
    and of equally large ones those with higher scores.

    Args:
        results: in COCO's results format, with a ``segmentation``.
        size: height, width of the image.
        score: detections with a lower score are left out.
    """
    kept = [result for result in results if result["score"] >= score]
    return paint([each["segmentation"] for each in kept], *size, [each["score"] for each in kept])


def objects_of(
    sample: Mapping[str, Any], results: Sequence[Mapping[str, Any]]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The true and the detected objects of an image as masks (H, W) bool that can be compared.

    Args:
        sample: image (H, W, 3), boxes (N, 4) x1 y1 x2 y2, masks (N, H, W).
        results: its detections in COCO's results format. If they are boxes only, all objects become full boxes.
    """
    if all("segmentation" in result for result in results):
        return list(np.asarray(sample["masks"])), [decode_mask(result["segmentation"]) for result in results]
    size = sample["image"].shape[:2]
    found = [(x, y, x + width, y + height) for x, y, width, height in (result["bbox"] for result in results)]
    return [fill_box(box, size) for box in sample["boxes"]], [fill_box(box, size) for box in found]


def fill_box(box: Sequence[float], size: tuple[int, int]) -> np.ndarray:
    """The pixels of an image (height, width) whose centers lie in a box x1 y1 x2 y2, (height, width) bool."""
    x1, y1, x2, y2 = (max(round(float(edge)), 0) for edge in box)
    mask = np.zeros(size, dtype=bool)
    mask[y1:y2, x1:x2] = True
    return mask


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """(H, W) bool -> COCO's compressed run lengths, ready for JSON."""
    encoded = rle.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(n) for n in encoded["size"]], "counts": encoded["counts"].decode()}


def decode_mask(encoded: Mapping[str, Any]) -> np.ndarray:
    """The inverse of :func:`encode_mask`: a mask (H, W) bool."""
    return rle.decode(dict(encoded)).astype(bool)
