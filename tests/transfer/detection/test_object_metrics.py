"""Object metrics of label maps, compared with plain loops written from the challenge's and the papers' definitions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import permutations

import numpy as np
import pytest
from scipy.spatial import cKDTree
from scipy.spatial.distance import directed_hausdorff

from densepath.transfer.detection import object_distance, object_overlap
from densepath.transfer.detection.object_metrics import OBJECT_METRICS, compare, over_images

Masks = list[np.ndarray]


def masks_of(labels: np.ndarray) -> Masks:
    return [labels == label for label in sorted(set(labels[labels > 0].tolist()))]


def hausdorff(a: np.ndarray, b: np.ndarray) -> float:
    one, other = np.argwhere(a), np.argwhere(b)
    return max(directed_hausdorff(one, other)[0], directed_hausdorff(other, one)[0])


def counterpart(mask: np.ndarray, others: Masks) -> int | None:
    """The first of the others with the largest overlap."""
    shared = [int((mask & other).sum()) for other in others]
    return shared.index(max(shared)) if shared and max(shared) > 0 else None


def directions(true: Masks, found: Masks) -> list[list[tuple[int, float, float]]]:
    """(area, Dice, Hausdorff distance) of each object, in both directions, as in the challenge's code."""
    out = []
    for own, others in ((true, found), (found, true)):
        rows = []
        for mask in own:
            match = counterpart(mask, others)
            if match is not None:
                dice = 2 * (mask & others[match]).sum() / (mask.sum() + others[match].sum())
                rows.append((int(mask.sum()), float(dice), hausdorff(mask, others[match])))
            else:
                rows.append((int(mask.sum()), 0.0, min((hausdorff(mask, other) for other in others), default=math.inf)))
        out.append(rows)
    return out


def true_positives(true: Masks, found: Masks) -> int:
    hits = 0
    for mask in found:
        match = counterpart(mask, true)
        hits += match is not None and (mask & true[match]).sum() / true[match].sum() > 0.5
    return hits


def weighted(rows: list[tuple[int, float, float]], column: int) -> float:
    return sum(row[0] * row[column] for row in rows) / sum(row[0] for row in rows)


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


def aji(true: Masks, found: Masks) -> float:
    shared = union = 0
    used = set()
    for mask in true:
        ious = [iou(mask, other) for other in found]
        if not ious or max(ious) == 0:
            union += mask.sum()
            continue
        best = ious.index(max(ious))
        used.add(best)
        shared += (mask & found[best]).sum()
        union += (mask | found[best]).sum()
    union += sum(mask.sum() for number, mask in enumerate(found) if number not in used)
    return float(shared / union)


def best_sum_of_ious(true: Masks, found: Masks) -> float:
    few, many = sorted((true, found), key=len)
    return max(sum(iou(a, b) for a, b in zip(few, order, strict=True)) for order in permutations(many, len(few)))


def panoptic(true: Masks, found: Masks) -> tuple[float, float]:
    ious = [iou(a, b) for a in true for b in found]
    matched = [each for each in ious if each > 0.5]
    missed, false = len(true) - len(matched), len(found) - len(matched)
    quality = sum(matched) / len(matched) if matched else 0.0
    return len(matched) / (len(matched) + missed / 2 + false / 2), quality


def scene(seed: int, count: int, size: tuple[int, int] = (26, 34)) -> np.ndarray:
    """Rectangles and rings on top of each other: some touch, some have holes, several parts, or a single pixel."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(size, np.int32)
    for number in range(1, count + 1):
        y, x = (int(rng.integers(0, side - 2)) for side in size)
        height, width = (int(n) for n in rng.integers(1, 14, 2))
        labels[y : y + height, x : x + width] = number
        if number % 3 == 0:
            labels[y + 2 : y + height - 2, x + 2 : x + width - 2] = 0
    return labels


def pair(seed: int) -> tuple[np.ndarray, np.ndarray]:
    truth = scene(seed, 1 + seed % 6)
    found = np.roll(truth, (seed % 3, -(seed % 4)), axis=(0, 1)) if seed % 2 else scene(seed + 100, 1 + seed % 5)
    found[:, :6] = 0
    return truth, found


@pytest.mark.parametrize("seed", range(24))
def test_metrics_of_an_image_are_those_of_plain_loops(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_distance, "_FEW", 0 if seed % 3 else 100)
    truth, found = pair(seed)
    true, seen = masks_of(truth), masks_of(found)
    rows = directions(true, seen)
    metrics = compare(truth, found).metrics
    assert tuple(metrics) == OBJECT_METRICS
    assert metrics["object_f1"] == pytest.approx(200 * true_positives(true, seen) / (len(true) + len(seen)))
    assert metrics["object_dice"] == pytest.approx(50 * sum(weighted(each, 1) for each in rows if each))
    sides = [weighted(each, 2) for each in rows if each]
    assert metrics["object_hausdorff_px"] == pytest.approx(sum(sides) / len(sides))
    assert metrics["aji"] == pytest.approx(100 * aji(true, seen))
    dq, sq = panoptic(true, seen)
    assert [metrics[name] for name in ("dq", "sq", "pq")] == pytest.approx([100 * dq, 100 * sq, 100 * dq * sq])


@pytest.mark.parametrize("seed", range(12))
def test_aji_plus_pairs_objects_one_to_one_with_the_largest_sum(seed: int) -> None:
    truth, found = pair(2 * seed)
    true, seen = masks_of(truth), masks_of(found)
    few, many = (true, seen) if len(true) <= len(seen) else (seen, true)
    best = best_sum_of_ious(true, seen)
    values = []
    for order in permutations(range(len(many)), len(few)):
        pairs = [(a, many[n]) for a, n in zip(few, order, strict=True) if iou(a, many[n]) > 0]
        if sum(iou(a, b) for a, b in pairs) == pytest.approx(best):
            shared = sum(int((a & b).sum()) for a, b in pairs)
            values.append(100 * shared / (sum(int(m.sum()) for m in (*true, *seen)) - shared))
    plus = compare(truth, found).metrics["aji_plus"]
    assert any(plus == pytest.approx(value) for value in values)


def test_metrics_of_a_data_set() -> None:
    """GlaS's are over all objects, the others means over images."""
    pairs = [pair(seed) for seed in range(6)]
    metrics = over_images([compare(*each) for each in pairs])
    masks = [(masks_of(truth), masks_of(found)) for truth, found in pairs]
    rows = [directions(*each) for each in masks]
    for column, name, scale in ((1, "object_dice", 100), (2, "object_hausdorff_px", 1)):
        both = [weighted([row for each in rows for row in each[side]], column) for side in (0, 1)]
        assert metrics[name] == pytest.approx(scale * sum(both) / 2)
    hits, objects = (sum(f(*each) for each in masks) for f in (true_positives, lambda a, b: len(a) + len(b)))
    assert metrics["object_f1"] == pytest.approx(200 * hits / objects)
    for name in ("aji", "aji_plus", "dq", "sq", "pq"):
        assert metrics[name] == pytest.approx(np.mean([compare(*each).metrics[name] for each in pairs]))


def test_known_values() -> None:
    """A square of 4 x 4 px, found two pixels further right, and a false object of one pixel."""
    truth, found = np.zeros((2, 10, 20), np.uint8)
    truth[2:6, 2:6] = 7
    found[2:6, 4:8] = 1
    found[9, 19] = 200
    metrics = compare(truth, found).metrics
    assert metrics["object_f1"] == 0  # it covers exactly half of the true object, not more
    assert metrics["object_dice"] == pytest.approx(100 * (0.5 + 0.5 * 16 / 17) / 2)
    far = math.hypot(9 - 2, 19 - 2)  # from the false pixel to the farthest pixel of the square
    assert metrics["object_hausdorff_px"] == pytest.approx((2 + (16 * 2 + far) / 17) / 2)
    assert metrics["aji"] == metrics["aji_plus"] == pytest.approx(100 * 8 / 25)
    assert (metrics["dq"], metrics["sq"], metrics["pq"]) == (0, 0, 0)  # an IoU of 1/3
    found[2:6, 3:8] = 1  # three of four columns, and two more
    metrics = compare(truth, found).metrics
    assert metrics["object_f1"] == pytest.approx(100 * 2 / 3)
    found[:, 6:8] = 0
    metrics = compare(truth, found).metrics
    assert [metrics[name] for name in ("dq", "sq", "pq")] == pytest.approx([200 / 3, 75, 50])


def test_one_found_object_on_two_true_ones() -> None:
    """AJI counts it for both, AJI+ for one."""
    truth, found = np.zeros((2, 8, 8), np.int32)
    truth[:, :4], truth[:, 4:] = 1, 2  # they touch
    found[:] = 1
    metrics = compare(truth, found).metrics
    assert metrics["aji"] == pytest.approx(100 * 64 / 128)
    assert metrics["aji_plus"] == pytest.approx(100 * 32 / 96)
    assert metrics["object_f1"] == pytest.approx(200 / 3)
    assert metrics["object_dice"] == pytest.approx(200 / 3)


def test_images_without_objects() -> None:
    """As in the challenge's code; in a data set, a distance that is infinite is the image's diagonal."""
    empty, square = np.zeros((2, 30, 40), np.int32)
    square[3:9, 5:7] = 3
    shares = [name for name in OBJECT_METRICS if name != "object_hausdorff_px"]
    nothing = compare(empty, empty)
    assert nothing.metrics == over_images([nothing]) == {**dict.fromkeys(shares, 100.0), "object_hausdorff_px": 0.0}
    for each in (compare(square, empty), compare(empty, square)):
        assert each.metrics == {**dict.fromkeys(shares, 0.0), "object_hausdorff_px": math.inf}
        assert over_images([each])["object_hausdorff_px"] == 50
        # Another image, where all is right: the missing or false object has half of the area of its side.
        both = over_images([each, compare(square, square)])
        assert both["object_hausdorff_px"] == 12.5 and both["object_dice"] == 75
        assert both["object_f1"] == pytest.approx(200 / 3) and both["aji"] == 50


def test_the_numbering_of_objects_does_not_matter() -> None:
    truth, found = pair(5)
    expected = compare(truth, found).metrics
    table = np.array([0, 2**31 - 1, 17, 400_000, 5, 3, 2**20], np.int64)
    renumbered = compare(table[truth].astype(np.uint32), table[found]).metrics
    for name in set(OBJECT_METRICS) - {"object_dice", "object_hausdorff_px", "object_f1"}:
        assert renumbered[name] == pytest.approx(expected[name])
    increasing = np.array([0, 5, 17, 300, 70_000, 2**20, 2**31 - 1], np.int64)
    assert compare(increasing[truth].astype(np.int32), increasing[found]).metrics == expected
    background = np.where(truth == 0, -1, truth)
    assert compare(background, found).metrics == expected


def test_large_maps_are_compared_in_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    truth, found = pair(7)
    expected = compare(truth, found).metrics
    monkeypatch.setattr(object_overlap, "_AT_ONCE", 100)
    assert compare(truth, found).metrics == expected


def test_maps_of_different_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="label maps"):
        compare(np.zeros((4, 5), int), np.zeros((5, 4), int))


def test_the_nearest_boxes_come_first_and_the_others_are_not_looked_at() -> None:
    """Sorting all objects for each one without a counterpart took ten minutes for 60,000 cells of a slide."""
    boxes = np.random.default_rng(0).integers(0, 50, (300, 4))
    tree, asked = cKDTree(boxes), []

    class Watched:
        n = len(boxes)

        def query(self, box: np.ndarray, k: Sequence[int], p: float) -> tuple[np.ndarray, np.ndarray]:
            asked.append(max(k))
            return tree.query(box, k, p=p)

    bounds = np.abs(boxes - boxes[7]).max(axis=1)
    found = object_distance._nearest(Watched(), boxes[7])
    assert next(found) == (7, 0.0) and asked == [8]
    others, distances = zip(*found, strict=True)
    assert sorted(others) == [k for k in range(300) if k != 7]
    assert list(distances) == sorted(bounds)[1:] and [bounds[k] for k in others] == list(distances)
    assert list(object_distance._nearest(cKDTree(np.zeros((0, 4))), boxes[7])) == []
