"""COCO's outlines of objects as run lengths, and their pixels in a label map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from faster_coco_eval import mask as rle


def compress(segmentation: Any, height: int, width: int) -> Any:
    """Any of COCO's three outline formats as compressed run lengths."""
    if isinstance(segmentation, list):
        return rle.merge(rle.frPyObjects(segmentation, height, width))
    if isinstance(segmentation["counts"], list):
        return rle.frPyObjects(segmentation, height, width)
    return segmentation


def read_runs(counts: Any) -> npt.NDArray[np.int64] | None:
    """The lengths of the runs, from COCO's list or from its compressed text; None if it is neither.

    The text has 5 bits per character, lowest first; the sixth bit means that more follow. From the fourth number on,
    each is the difference to the last but one.
    """
    if isinstance(counts, list):
        return np.array(counts, np.int64) if all(isinstance(n, int) and abs(n) < 2**40 for n in counts) else None
    if not isinstance(counts, str) or not counts.isascii():
        return None
    codes = np.frombuffer(counts.encode(), np.uint8).astype(np.int64) - 48
    last = codes & 32 == 0
    if not len(codes) or codes.min() < 0 or codes.max() > 63 or not last[-1]:
        return None
    starts = np.concatenate([[0], np.flatnonzero(last)[:-1] + 1])
    lengths = np.diff(starts, append=len(codes))
    if lengths.max() > 7:
        return None
    digit = np.arange(len(codes)) - np.repeat(starts, lengths)
    runs = np.add.reduceat((codes & 31) << (5 * digit), starts)
    runs -= np.where(codes[last] & 16, 1 << (5 * lengths), 0)
    runs[1::2], runs[2::2] = runs[1::2].cumsum(), runs[2::2].cumsum()
    return runs


def paint(segmentations: Sequence[Any], height: int, width: int) -> npt.NDArray[np.int32]:
    """Objects as a label map (H, W): 0 is background, k the k-th object; later ones on top.

    Takes time and memory for the objects' pixels, not for a mask of the image for each.
    """
    columns = np.zeros(width * height, np.int32)
    for number, segmentation in enumerate(segmentations, 1):
        counts = compress(segmentation, height, width)["counts"]
        runs = read_runs(counts.decode() if isinstance(counts, bytes) else counts)
        assert runs is not None  # checked when the file was read
        ends, lengths = runs.cumsum()[1::2], runs[1::2]
        columns[np.arange(lengths.sum()) + np.repeat(ends - lengths.cumsum(), lengths)] = number
    return np.ascontiguousarray(columns.reshape(width, height).T)
