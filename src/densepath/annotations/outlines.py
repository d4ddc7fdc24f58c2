"""Outlines of objects: polygons and run lengths of COCO, drawn once as compressed run lengths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

# Drawing takes 5 points of 20 bytes per pixel of length: 200 MiB at most.
LONGEST = 2**21  # pixels of an object's outlines together
_FAR = 10  # larger sides of the image from its corner: a point farther away is an error
_NEITHER = "outlines that are neither polygons nor run lengths of the image's size"
_MOST_DIGITS = 7  # of a run in compressed text

Outline = dict[str, Any]  # size [height, width]; counts, the compressed run lengths as text
Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


def run_lengths() -> Any:
    """The module of faster-coco-eval for run lengths: imported when it is first needed, as most verbs do without."""
    from faster_coco_eval import mask

    return mask


def draw(segmentation: Any, height: int, width: int) -> tuple[Outline, list[float]]:
    """Draw an object's outlines, in any of the three formats of COCO, as pycocotools does.

    Parts of fewer than three points, which have no area, are left out.

    Args:
        segmentation: polygons, or run lengths as numbers or as compressed text; not checked before.
        height, width: of the image in pixels.

    Returns:
        The run lengths, and the bounds x1 y1 x2 y2 of the outlines in pixels; those of polygons may leave the image.

    Raises:
        ValueError: what is wrong, as a phrase for several outlines.
    """
    if isinstance(segmentation, list):
        far = _FAR * max(height, width)
        segmentation = [part for part in segmentation if not _is_sliver(part)]
        if not segmentation:
            raise ValueError("no outlines")
        if not all(_is_polygon(polygon, far) for polygon in segmentation):
            raise ValueError(_NEITHER)
        bounds = [f(f(polygon[i::2]) for polygon in segmentation) for f in (min, max) for i in (0, 1)]
        # No side is longer than the bounds: for most outlines this is enough.
        if sum(map(len, segmentation)) * max(bounds[2] - bounds[0], bounds[3] - bounds[1]) > LONGEST:
            segmentation = _bounded(segmentation, height, width)
        drawn = run_lengths().frPyObjects(segmentation, height, width)
        runs = run_lengths().merge(drawn) if len(drawn) > 1 else drawn[0]
    else:
        runs = _checked_runs(segmentation, height, width)
        x, y, wide, high = run_lengths().toBbox(runs).tolist()
        bounds = [x, y, x + wide, y + high]
    counts = runs["counts"]
    return {"size": [height, width], "counts": counts.decode() if isinstance(counts, bytes) else counts}, bounds


def has_outline(segmentation: Any) -> bool:
    """Whether an object has something that should be an outline: not so for None, [] and [[]], the marks of a box."""
    return any(segmentation) if isinstance(segmentation, list | dict) else bool(segmentation)


def slivers(segmentation: Any) -> int:
    """The number of parts of polygons with fewer than three points; :func:`draw` leaves them out."""
    return sum(map(_is_sliver, segmentation)) if isinstance(segmentation, list) else 0


def is_empty(outline: Outline) -> bool:
    """Whether an outline covers no pixel: its only run is the background."""
    return len(outline["counts"]) <= _MOST_DIGITS and not run_lengths().area(outline)


def encode_part(mask: npt.NDArray[np.bool_], top: int, left: int, size: tuple[int, int]) -> Outline:
    """The run lengths of an image (height, width) that is empty outside a ``mask`` at ``top``, ``left``."""
    height, width = size
    # Runs go down the columns. Zeros above and below the mask end each run in its own column.
    columns = np.pad(mask.T, ((0, 0), (1, 1))).astype(np.int8)
    edges = np.diff(columns, axis=1)
    place = (left + np.arange(mask.shape[1]))[:, None] * height + top + np.arange(mask.shape[0] + 1)
    starts, ends = place[edges == 1], place[edges == -1]
    joined = starts[1:] == ends[:-1]  # a column that is full to the bottom, and the next one from the top
    bounds = np.stack((starts[np.append(True, ~joined)[: len(starts)]], ends[np.append(~joined, True)[: len(ends)]]), 1)
    counts = np.diff(bounds.reshape(-1), prepend=0, append=height * width)
    counts = counts[: len(counts) - (counts[-1] == 0)]  # as COCO's encoder
    runs = run_lengths().frPyObjects({"counts": counts.tolist(), "size": [height, width]}, height, width)
    return {"size": [height, width], "counts": runs["counts"].decode()}


def union(outlines: Sequence[Outline], height: int, width: int) -> npt.NDArray[np.bool_]:
    """The pixels (H, W) that any of the outlines covers. The time does not grow with outlines x pixels."""
    runs, ranks = decode_runs([outline["counts"].encode() for outline in outlines])
    area = height * width  # the sum of the runs of each outline
    ends, covered = runs.cumsum(), (ranks % 2 == 1) & (runs > 0)
    change = np.bincount((ends - runs)[covered] % area, minlength=area + 1)
    change -= np.bincount((ends[covered] - 1) % area + 1, minlength=area + 1)
    return (change[:-1].cumsum() > 0).reshape(width, height).T


def painting_key(area: int, score: float, number: int) -> tuple[float, ...]:
    """By which predicted objects are sorted before they are painted: smaller ones later; of equally large ones, those
    with higher scores, and of equal scores, lower numbers.
    """
    return -area, score, -number


def paint(
    outlines: Sequence[Outline], height: int, width: int, scores: Sequence[float] | None = None
) -> npt.NDArray[np.int32]:
    """Objects as a label map (H, W): 0 for background, k for the k-th object; smaller ones on top.

    Takes time and memory for the objects' pixels, not for a mask of the image for each.

    Args:
        outlines: the objects.
        height, width: of the image in pixels.
        scores: of predicted objects, which are painted in the order of :func:`painting_key`. Without scores, which of
            two equally large ones is on top depends on their outlines, not on their order; of equal outlines it is the
            last.
    """
    columns = np.zeros(width * height, np.int32)
    drawn: list[tuple[Any, int, Integers]] = []
    for number, outline in enumerate(outlines, 1):
        runs, _ = decode_runs([outline["counts"].encode()])
        area = int(runs[1::2].sum())
        key = (-area, outline["counts"], number) if scores is None else painting_key(area, scores[number - 1], number)
        drawn.append((key, number, runs))
    for _, number, runs in sorted(drawn, key=lambda each: each[0]):
        ends = runs.cumsum()[1::2]
        columns[_positions(ends - runs[1::2], ends)] = number
    return np.ascontiguousarray(columns.reshape(width, height).T)


def part_of(outline: Outline, top: int, left: int, size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """The mask (h, w) of a rectangle of the image, in time and memory for its columns, not for the whole image.

    Args:
        outline: the object.
        top, left, size: the rectangle, which lies inside of the image.
    """
    height, (rows, columns) = outline["size"][0], size
    runs, _ = decode_runs([outline["counts"].encode()])
    ends = runs.cumsum()[1::2]
    starts, ends = ((edge - left * height).clip(0, columns * height) for edge in (ends - runs[1::2], ends))
    mask = np.zeros(columns * height, bool)
    mask[_positions(starts, ends)] = True
    return np.ascontiguousarray(mask.reshape(columns, height)[:, top : top + rows].T)


def _positions(starts: Integers, ends: Integers) -> Integers:
    """The numbers from each start to each end."""
    lengths = ends - starts
    return np.arange(lengths.sum()) + np.repeat(ends - lengths.cumsum(), lengths)


def mostly_hidden(labels: npt.NDArray[np.int32], outlines: Sequence[Outline]) -> npt.NDArray[np.bool_]:
    """(N,) whether each object keeps fewer than half of its pixels in the label map of :func:`paint`."""
    areas = np.array(run_lengths().area(list(outlines)), np.int64).reshape(-1)
    left = np.bincount(labels.reshape(-1), minlength=len(areas) + 1)[1:]
    return 2 * left < areas


def decode_runs(texts: Sequence[bytes]) -> tuple[Integers, Integers]:
    """The lengths of the runs of valid compressed texts, one text after the other, and each run's rank in its text.

    A text has 5 bits per character, lowest first; the sixth bit means that more follow. From the fourth number on,
    each is the difference to the last but one.
    """
    codes = np.frombuffer(b"".join(texts), np.uint8).astype(np.int64) - 48
    last = codes & 32 == 0
    starts = np.concatenate([[0], np.flatnonzero(last)[:-1] + 1]) if len(codes) else np.zeros(0, np.int64)
    lengths = np.diff(starts, append=len(codes))
    digit = np.arange(len(codes)) - np.repeat(starts, lengths)
    runs = np.add.reduceat((codes & 31) << (5 * digit), starts) if len(codes) else np.zeros(0, np.int64)
    runs -= np.where(codes[last] & 16, 1 << (5 * lengths), 0)
    # The first run of each text, and the ranks from there.
    firsts = np.searchsorted(starts, np.cumsum([0, *map(len, texts)])[:-1])
    ranks = np.arange(len(runs)) - np.repeat(firsts, np.diff(firsts, append=len(runs)))
    for rank in (1, 2):
        these = np.flatnonzero((ranks % 2 == rank % 2) & (ranks > 0))
        sums, begin = runs[these].cumsum(), np.flatnonzero(ranks[these] == rank)
        before = sums[begin] - runs[these[begin]]
        runs[these] = sums - np.repeat(before, np.diff(begin, append=len(these)))
    return runs, ranks


def are_numbers(values: Any, most: float) -> bool:
    """Whether something is a list of numbers, none larger than ``most`` or smaller than ``-most``."""
    if not isinstance(values, list) or not values or not set(map(type, values)) <= {int, float, bool}:
        return False
    return -most <= min(values) and max(values) <= most and sum(values) == sum(values)  # NaN differs from itself


def _is_polygon(polygon: Any, far: float) -> bool:
    """Whether something is a polygon of COCO, x y x y ..., with no corner beyond ``far``."""
    return are_numbers(polygon, far) and len(polygon) >= 6 and len(polygon) % 2 == 0


def _is_sliver(part: Any) -> bool:
    return isinstance(part, list) and len(part) in (0, 2, 4) and (not part or are_numbers(part, np.inf))


def _bounded(segmentation: list[list[float]], height: int, width: int) -> list[list[float]]:
    """Polygons, clipped to their image if they are too long.

    Raises:
        ValueError: they are too long even so.
    """
    polygons = [np.array(polygon, np.float64).reshape(-1, 2) for polygon in segmentation]
    if sum(map(_length, polygons)) > LONGEST:
        polygons = [_clip(polygon, height, width) for polygon in polygons]
        if sum(map(_length, polygons)) > LONGEST:
            raise ValueError(f"outlines longer than {LONGEST:,} px")
    return [polygon.ravel().tolist() for polygon in polygons]


def _length(polygon: Floats) -> float:
    """The number of steps of a pixel along the sides of a polygon (N, 2), and at least one for each side."""
    sides = np.abs(np.diff(polygon, axis=0, append=polygon[:1])).max(axis=1, initial=0)
    return float(np.maximum(sides, 1 / 5).sum())


def _clip(polygon: Floats, height: int, width: int) -> Floats:
    """The part of a polygon (N, 2) up to a pixel around its image, by Sutherland and Hodgman's algorithm.

    New corners are not at the fifths of a pixel where pycocotools draws, so that pixels at its border may differ.
    """
    for axis, sign, limit in ((0, 1, -1.0), (0, -1, -width - 1.0), (1, 1, -1.0), (1, -1, -height - 1.0)):
        inside = sign * polygon[:, axis] - limit
        after, following = np.roll(polygon, -1, axis=0), np.roll(inside, -1)
        crosses = (inside < 0) != (following < 0)
        share = np.divide(inside, inside - following, where=crosses, out=np.zeros(len(polygon)))
        pairs = np.stack([polygon, polygon + share[:, None] * (after - polygon)], axis=1)
        polygon = pairs[np.stack([inside >= 0, crosses], axis=1)]
    return polygon if len(polygon) else np.full((3, 2), -1.0)


def _checked_runs(segmentation: Any, height: int, width: int) -> Any:
    """Run lengths of an image's size, as numbers or as compressed text, in a form that the library takes."""
    wrong = ValueError(_NEITHER)
    if not isinstance(segmentation, dict) or segmentation.get("size") != [height, width]:
        raise wrong
    counts = segmentation.get("counts")
    runs = _run_lengths(counts)
    # If there are fewer pixels than the image has, the decoder leaves the rest uninitialized.
    if runs is None or not (runs >= 0).all() or runs.sum() != height * width:
        raise wrong
    known = {"size": [height, width], "counts": runs.tolist() if isinstance(counts, list) else counts}
    return run_lengths().frPyObjects(known, height, width) if isinstance(counts, list) else known


def _run_lengths(counts: Any) -> Integers | None:
    """The lengths of the runs, from COCO's list or from its compressed text; None if it is neither."""
    if isinstance(counts, list):
        whole = are_numbers(counts, 2**40) and all(n == int(n) for n in counts)
        return np.array(counts, np.int64) if whole else None
    if not isinstance(counts, str) or not counts.isascii():
        return None
    codes = np.frombuffer(counts.encode(), np.uint8).astype(np.int64) - 48
    last = codes & 32 == 0
    if not len(codes) or codes.min() < 0 or codes.max() > 63 or not last[-1]:
        return None
    if np.diff(np.flatnonzero(last), prepend=-1).max() > _MOST_DIGITS:
        return None
    return decode_runs([counts.encode()])[0]
