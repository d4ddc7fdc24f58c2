"""Dice, IoU and the Hausdorff distance against plain loops, and what is counted as a failure."""

from __future__ import annotations

import itertools
import math
import tracemalloc

import numpy as np
import pytest
from scipy import ndimage

from densepath.transfer.segment.case_scores import dice, hausdorff95, iou, score_case
from densepath.transfer.segment.legend import IGNORED, Legend
from densepath.transfer.segment.results import Outcome, describe, failures, score

LEGEND = Legend(("background", "a", "b"), (0, 1, 2), 0, regions=(("a", (1,)), ("b", (2,)), ("both", (1, 2))))


def slow_hausdorff(one: np.ndarray, other: np.ndarray, spacing: tuple[float, ...] | np.ndarray) -> float:
    """Every edge pixel against every other one."""

    def edge(mask: np.ndarray) -> list[tuple[int, ...]]:
        found = []
        for place in map(tuple, np.argwhere(mask)):
            near = [
                tuple(p + step * (a == axis) for a, p in enumerate(place))
                for axis, step in itertools.product(range(mask.ndim), (-1, 1))
            ]
            inside = [all(0 <= p < n for p, n in zip(q, mask.shape, strict=True)) and mask[q] for q in near]
            found += [place] * (not all(inside))
        return found

    def directed(a: list[tuple[int, ...]], b: list[tuple[int, ...]]) -> float:
        steps = np.diag(spacing) if np.ndim(spacing) == 1 else np.asarray(spacing)
        nearest = [min(math.dist(p @ steps, q @ steps) for q in b) for p in a]
        return float(np.percentile(nearest, 95))

    return max(directed(edge(one), edge(other)), directed(edge(other), edge(one)))


SHEARED = np.array([[0.0, -1.09, 3.0], [0.0, 0.8, 0.0], [0.8, 0.0, 0.0]])  # a tilted gantry, in mm along z, y and x


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.5, 2.0), (1.0, 2.5, 0.7), SHEARED])
def test_hausdorff_is_that_of_all_pairs_of_edge_pixels(spacing: tuple[float, ...] | np.ndarray) -> None:
    rng = np.random.default_rng(0)
    for shape in ((9, 11, 8)[: len(spacing)], (5, 6, 7)[: len(spacing)]):
        one, other = (rng.random(shape) < share for share in (0.3, 0.6))  # touching the border
        assert hausdorff95(one, other, spacing) == pytest.approx(slow_hausdorff(one, other, spacing))
    assert hausdorff95(one, one, spacing) == 0
    assert math.isnan(hausdorff95(one, np.zeros_like(one), spacing))


def test_distances_take_little_memory_and_are_those_of_the_distance_transform() -> None:
    place, spacing = np.indices((48, 56, 64)).astype(np.float32), np.array([2.5, 0.703125, 0.7])
    one, other = ((place - middle) ** 2 for middle in (26, 29))
    one, other = one.sum(0) < 480, other.sum(0) < 500
    edges = [mask & ~ndimage.binary_erosion(mask) for mask in (one, other)]
    far = [ndimage.distance_transform_edt(~b, sampling=spacing)[a] for a, b in (edges, edges[::-1])]
    tracemalloc.start()
    try:
        found = hausdorff95(one, other, spacing)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found == max(np.percentile(each, 95) for each in far)  # to the last bit
    box = np.prod([np.ptp(places) + 3 for places in np.nonzero(one | other)])
    assert peak < 25 * box  # bytes; a volume of a CT may have 500 million voxels


def test_overlaps_are_those_of_loops_and_ignored_pixels_count_nowhere() -> None:
    rng = np.random.default_rng(1)
    found, truth = (rng.integers(0, 3, (7, 9)).astype(np.uint8) for _ in range(2))
    truth[:2] = IGNORED
    columns = score_case(found, truth, LEGEND, (1.0, 1.0))
    for row, members in zip(columns, ({1}, {2}, {1, 2}), strict=True):
        pairs = [(f in members, t in members) for f, t in zip(found[2:].flat, truth[2:].flat, strict=True)]
        both, own, true = sum(f and t for f, t in pairs), sum(f for f, _ in pairs), sum(t for _, t in pairs)
        assert tuple(row[:3]) == (both, own, true)
        assert dice(row) == pytest.approx(2 * both / (own + true)) and iou(row) == pytest.approx(
            both / (own + true - both)
        )


def test_missed_and_absent_structures_are_counted() -> None:
    nan = float("nan")
    columns = np.array(
        [  # of a: right, missed, false, absent; of b: half right, missed, absent, absent
            [[4, 4, 4, 1.0], [2, 4, 4, 3.0]],
            [[0, 0, 5, nan], [0, 0, 2, nan]],
            [[0, 3, 0, nan], [0, 0, 0, nan]],
            [[0, 0, 0, nan], [0, 0, 0, nan]],
        ]
    )
    tested = Outcome(list("wxyz"), list("ppqr"), columns, ("a", "b"), np.zeros(4, np.int64), ["run"], "mm")
    failed = failures(columns, tested.regions)
    assert failed["a"] == {"present": 2, "missed": 1, "false": 1, "absent": 1}
    assert failed["b"] == {"present": 2, "missed": 1, "false": 0, "absent": 2}
    scores = score(tested, seed=0)
    assert scores.all["dice_a"].value == pytest.approx(100 / 3)  # a missed and a false one are 0, absent is left out
    assert scores.all["dice_b"].value == pytest.approx(25) and scores.all["mean_dice"].value == pytest.approx(175 / 6)
    assert (scores.all["hd95_a"].value, scores.all["mean_hd95"].value) == pytest.approx((1, 2))  # of those in both
    assert scores.all["pooled_iou_a"].value == pytest.approx(100 * 4 / 12)
    assert scores.all["dice_a"].low <= scores.all["dice_a"].value <= scores.all["dice_a"].high
    assert describe(scores, failed, "mm", several=False).endswith("a missed in 1 of 2, false in 1; b missed in 1 of 2")
