"""The metrics of gland and nucleus segmentation: of label maps, without scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from densepath.transfer.detection.object_distance import hausdorff_distances
from densepath.transfer.detection.object_overlap import LabelMap, Overlap, find_overlap

Values = npt.NDArray[np.float64]

OBJECT_METRICS = ("object_f1", "object_dice", "object_hausdorff_px", "aji", "aji_plus", "dq", "sq", "pq")
_SAME = 0.5  # overlap of a true object, and intersection over union, above which it counts as found


@dataclass(frozen=True, eq=False)
class ImageScores:
    """The found objects of an image compared with the true ones.

    Args:
        size: height and width of the image in pixels.
        areas: of the true and of the found objects, in pixels.
        dice: of the true and of the found objects with their counterparts, from 0 to 1.
        distances: Hausdorff distances of the true and of the found objects to their counterparts, in pixels.
        correct: number of found objects that cover more than half of their counterpart.
        shares: aji, aji_plus, dq, sq and pq, from 0 to 1.
    """

    size: tuple[int, int]
    areas: tuple[Values, Values]
    dice: tuple[Values, Values]
    distances: tuple[Values, Values]
    correct: int
    shares: dict[str, float]

    @property
    def metrics(self) -> dict[str, float]:
        """``OBJECT_METRICS`` of this image; shares are in percent.

        If one side has no object, the Hausdorff distance is infinite; if neither has one, it is 0 and all shares 100.
        """
        return _pooled([self], [self.distances])


def compare(truth: LabelMap, found: LabelMap) -> ImageScores:
    """Compare two label maps (H, W) of integers: each positive number is an object, connected or not.

    An object's counterpart is the one of the other map that shares most pixels; of equal ones, that with the smallest
    label. F1, Dice and Hausdorff distance are those of the GlaS challenge's code: an object is found correctly if it
    covers more than half of its counterpart (the paper says at least half, which two objects can do). Dice is 0 without
    counterpart; for the Hausdorff distance, the counterpart is then the object at the smallest distance. AJI, as in
    MoNuSeg's code, pairs each true object with the one of the largest IoU, and a found one perhaps several times; AJI+
    pairs them one to one, with the largest sum of IoU. DQ, SQ and PQ match objects with an IoU of more than 0.5.

    Source: Sirinukunwattana et al., "Gland segmentation in colon histology images: the GlaS challenge contest", 2017;
    Kumar et al., "A dataset and a technique for generalized nuclear segmentation", 2017; Kirillov et al., "Panoptic
    segmentation", 2019; Graham et al., "HoVer-Net", 2019 (AJI+, and PQ of one class of nuclei).
    """
    overlap = find_overlap(truth, found)
    areas = overlap.truth.areas.astype(float), overlap.found.areas.astype(float)
    true, found_ones = overlap.pairs.T
    dice = np.append(2 * overlap.pixels / (areas[0][true] + areas[1][found_ones]), 0.0)  # -1, for no pair, is the last
    return ImageScores(
        (truth.shape[0], truth.shape[1]),
        areas,
        (dice[overlap.best(0, overlap.pixels)], dice[overlap.best(1, overlap.pixels)]),
        hausdorff_distances(overlap),
        len(correct_pairs(overlap)),
        {"aji": _aji(overlap), "aji_plus": _aji_plus(overlap), **_panoptic(overlap)},
    )


def correct_pairs(overlap: Overlap) -> npt.NDArray[np.int64]:
    """The pairs of objects that are found correctly, as positions in ``overlap.pairs``; see :func:`compare`."""
    chosen = overlap.best(1, overlap.pixels)
    chosen = chosen[chosen >= 0]
    return chosen[overlap.pixels[chosen] > _SAME * overlap.truth.areas[overlap.pairs[chosen, 0]]]


def over_images(images: Sequence[ImageScores]) -> dict[str, float]:
    """``OBJECT_METRICS`` of a data set; shares are in percent.

    F1, Dice and Hausdorff distance are over all objects of the data set, weighted by their areas, as the GlaS challenge
    defines them: F1 from the counts of all images. AJI, DQ, SQ and PQ are means over images, as in MoNuSeg and
    HoVer-Net. In an image where one side has no object, the other's distances are the image's diagonal: infinite ones,
    as in the challenge's code, would make the distance of a data set infinite if nothing is found in one image.
    """
    limits = [float(np.hypot(*image.size)) for image in images]
    finite = [
        (np.minimum(image.distances[0], limit), np.minimum(image.distances[1], limit))
        for image, limit in zip(images, limits, strict=True)
    ]
    return _pooled(images, finite)


def _pooled(images: Sequence[ImageScores], distances: Sequence[tuple[Values, Values]]) -> dict[str, float]:
    areas = [np.concatenate([image.areas[side] for image in images]) for side in (0, 1)]
    if objects := len(areas[0]) + len(areas[1]):
        # A direction without objects has a Dice of 0. Its Hausdorff distance is undefined: that of the other counts.
        dice = float(np.mean([_mean([image.dice[side] for image in images], areas[side]) for side in (0, 1)]))
        known = [side for side in (0, 1) if len(areas[side])]
        distance = float(np.mean([_mean([each[side] for each in distances], areas[side]) for side in known]))
        f1 = 2 * sum(image.correct for image in images) / objects
    else:
        f1, dice, distance = 1.0, 1.0, 0.0
    metrics = {"object_f1": 100 * f1, "object_dice": 100 * dice, "object_hausdorff_px": distance}
    return metrics | {
        name: 100 * float(np.mean([image.shares[name] for image in images])) for name in OBJECT_METRICS[3:]
    }


def _mean(values: Sequence[Values], areas: Values) -> float:
    """The mean over objects, weighted by their areas; 0 without objects."""
    return float(np.concatenate(values) @ areas / areas.sum()) if len(areas) else 0.0


def _aji(overlap: Overlap) -> float:
    best = overlap.best(0, overlap.ious)
    return _aggregated(overlap, best[best >= 0])


def _aji_plus(overlap: Overlap) -> float:
    """Pairs are assigned separately in each group of objects that overlap: one matrix for all may not fit in memory."""
    count = len(overlap.truth)
    size = count + len(overlap.found)
    ends = overlap.pairs[:, 0], count + overlap.pairs[:, 1]
    _, group = connected_components(coo_array((np.ones(len(ends[0])), ends), shape=(size, size)), directed=False)
    groups = group[ends[0]]
    order = np.argsort(groups, kind="stable")
    chosen: list[int] = []
    ious = overlap.ious
    for members in np.split(order, np.flatnonzero(np.diff(groups[order])) + 1):
        rows, row = np.unique(overlap.pairs[members, 0], return_inverse=True)
        columns, column = np.unique(overlap.pairs[members, 1], return_inverse=True)
        matrix, pair = np.zeros((len(rows), len(columns))), np.full((len(rows), len(columns)), -1)
        matrix[row, column], pair[row, column] = ious[members], members
        chosen += pair[linear_sum_assignment(matrix, maximize=True)].tolist()
    return _aggregated(overlap, np.array([each for each in chosen if each >= 0], np.int64))


def _aggregated(overlap: Overlap, chosen: npt.NDArray[np.int64]) -> float:
    """The intersections of the chosen pairs, divided by their unions and the areas of all objects without pair."""
    found = overlap.pairs[chosen, 1]
    shared = overlap.pixels[chosen]
    # A true object is in one pair at most, a found one perhaps in several.
    union = overlap.truth.areas.sum() - shared.sum() + overlap.found.areas[found].sum()
    union += np.delete(overlap.found.areas, found).sum()
    return float(shared.sum() / union) if union else 1.0


def _panoptic(overlap: Overlap) -> dict[str, float]:
    objects = len(overlap.truth) + len(overlap.found)
    if not objects:
        return {"dq": 1.0, "sq": 1.0, "pq": 1.0}
    matched = overlap.ious[overlap.ious > _SAME]
    dq, sq = 2 * len(matched) / objects, float(matched.mean()) if len(matched) else 0.0
    return {"dq": dq, "sq": sq, "pq": dq * sq}
