"""Windows of large images: objects that a border cuts appear once, as in the whole image."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest
from pycocotools import mask as coco
from scipy import ndimage
from skimage.draw import polygon2mask

from densepath.annotations.outlines import encode_part
from densepath.transfer.detection import windows
from densepath.transfer.detection.found import FoundObject, Window
from densepath.transfer.detection.instances import encode_mask, label_map_of
from densepath.transfer.detection.prediction import Prediction
from densepath.transfer.detection.prediction_files import outline, write_label_map
from densepath.transfer.detection.windows import _common, _Index, merge, windows_of

Labels = npt.NDArray[np.int32]


def objects_in(labels: Labels, window: Window, flaw: int = 0) -> list[FoundObject]:
    """What a perfect detector finds in a window of a label map; ``flaw`` pixels are missing at the window's edges."""
    part = np.zeros_like(labels)
    inner = (slice(window.top + flaw * (window.top > 0), window.bottom - flaw * (window.bottom < len(labels))),)
    part[inner[0], window.left : window.right] = labels[inner[0], window.left : window.right]
    found = []
    for number, place in enumerate(ndimage.find_objects(part), 1):
        if place is None:
            continue
        rows, columns = place
        pieces, _ = ndimage.label(part[place] == number)
        for piece, (r, c) in enumerate(ndimage.find_objects(pieces), 1):  # a cut horseshoe is two objects
            mask = pieces[r, c] == piece
            top, left = rows.start + r.start, columns.start + c.start
            box = (float(left), float(top), float(left + mask.shape[1]), float(top + mask.shape[0]))
            found.append(FoundObject(1, 1 - number / 1000, top, left, mask, box))
    return found


def found_by_windows(labels: Labels, side: int, overlap: float, flaw: int = 0) -> Iterator[tuple[Window, list]]:
    for window in windows_of(labels.shape, (side, side), overlap):
        yield window, objects_in(labels, window, flaw)


def blobs(seed: int, size: tuple[int, int] = (220, 300)) -> Labels:
    """Touching objects of all sizes, some larger than a window."""
    rng = np.random.default_rng(seed)
    noise = ndimage.gaussian_filter(rng.normal(size=size), rng.choice([3, 6, 14]))
    parts, _ = ndimage.label(noise > np.quantile(noise, 0.55))
    halves = (ndimage.gaussian_filter(rng.normal(size=size), 20) > 0).astype(int)
    split = np.where(halves == 1, parts * 2, parts * 2 - 1) * (parts > 0)
    out = np.zeros(size, np.int32)
    number = 0
    for value in np.unique(split[split > 0]):
        pieces, count = ndimage.label(split == value)
        for piece in range(1, count + 1):
            number += 1
            out[pieces == piece] = number
    return out


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("side", "overlap"), [(64, 0.25), (96, 0.5)])
def test_windows_give_the_objects_of_the_whole_image(seed: int, side: int, overlap: float) -> None:
    labels = blobs(seed)
    whole = {tuple(np.flatnonzero(labels == number)) for number in np.unique(labels[labels > 0])}
    merged = merge(found_by_windows(labels, side, overlap), labels.shape)
    again = [tuple(np.flatnonzero(each.part(0, 0, *labels.shape))) for each in merged]
    assert len(again) == len(set(again))
    assert set(again) == whole
    assert [each.score for each in merged] == sorted((each.score for each in merged), reverse=True)


def test_a_horseshoe_that_two_borders_cut_is_one_object() -> None:
    labels = np.zeros((100, 100), np.int32)
    labels[10:90, 10:30] = labels[10:90, 70:90] = labels[10:30, 10:90] = 1  # its legs end in the lower windows
    (merged,) = merge(found_by_windows(labels, 60, 0.3), labels.shape)
    np.testing.assert_array_equal(merged.part(0, 0, 100, 100), labels == 1)


def test_finds_that_differ_at_borders_are_joined_too() -> None:
    """A detector that misses three rows at the borders of windows."""
    labels = np.zeros((200, 60), np.int32)
    labels[5:195, 10:50] = 1
    merged = merge(found_by_windows(labels, 60, 0.4, flaw=1), labels.shape)
    assert len(merged) == 1 and merged[0].area == 190 * 40


def test_few_of_many_finds_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """A find meets those near it, not all of its window: a slide has millions of nuclei."""
    calls: list[FoundObject] = []
    monkeypatch.setattr(windows, "_common", lambda one, other: calls.append(one) or _common(one, other))
    labels = np.kron(np.arange(1, 26 * 39 + 1).reshape(26, 39), np.pad(np.ones((6, 6), np.int32), (0, 2)))
    found = list(found_by_windows(labels, 192, 0.25))
    assert len(merge(iter(found), labels.shape)) == 26 * 39
    assert len(calls) < 100 * sum(len(objects) for _, objects in found)


def test_an_index_keeps_nothing_of_what_was_removed() -> None:
    index = _Index([whole := rectangle(0, 0, 300, 300, 0.9), part := rectangle(40, 50, 60, 90, 0.8)])
    assert index.near(rectangle(55, 85, 70, 100, 0.5)) == [whole, part]
    index.remove(whole)
    assert index.near(rectangle(55, 85, 70, 100, 0.5)) == [part] == list(index)
    assert index.take_above(60) == [part] and not list(index) and not index._squares


def test_neighbors_classes_and_doubles() -> None:
    """Objects that only touch stay apart; so do two classes; of two whole finds of one object the better one stays."""
    square = np.ones((20, 20), bool)

    def at(top: int, left: int, label: int, score: float) -> FoundObject:
        return FoundObject(label, score, top, left, square, (left, top, left + 20, top + 20))

    first, second = Window(0, 0, 100, 80), Window(0, 40, 100, 120)
    found = [(first, [at(10, 45, 1, 0.8), at(10, 65 - 20, 2, 0.7)]), (second, [at(11, 46, 1, 0.9), at(31, 46, 1, 0.5)])]
    merged = merge(found, (100, 120))
    assert [(each.label, each.score, each.top) for each in merged] == [(1, 0.9, 11), (2, 0.7, 10), (1, 0.5, 31)]


@pytest.mark.parametrize("score", [0.3, 0.9])
@pytest.mark.parametrize(
    ("large", "small"),
    [
        ((20, 85, 80, 150), (40, 87, 50, 95)),  # the large one is cut by the first window that sees the small one
        ((20, 10, 70, 95), (40, 80, 50, 90)),  # and by the second
        ((20, 20, 180, 280), (80, 82, 92, 92)),  # and by all
    ],
)
def test_a_small_object_in_a_large_one_of_its_class_takes_nothing_from_it(
    large: tuple[int, ...], small: tuple[int, ...], score: float
) -> None:
    size = 200, 300

    def found() -> Iterator[tuple[Window, list[FoundObject]]]:
        for window in windows_of(size, (100, 100), 0.25):
            objects = []
            for (top, left, bottom, right), each in ((large, 0.6), (small, score)):
                top, left = max(top, window.top), max(left, window.left)
                bottom, right = min(bottom, window.bottom), min(right, window.right)
                if top < bottom and left < right:
                    mask = np.ones((bottom - top, right - left), bool)
                    objects.append(FoundObject(1, each, top, left, mask, (left, top, right, bottom)))
            yield window, sorted(objects, key=lambda each: -each.score)

    merged = {each.score: each for each in merge(found(), size)}
    for (top, left, bottom, right), each in ((large, 0.6), (small, score)):
        found_whole = merged.pop(each)
        assert found_whole.box == (left, top, right, bottom)
        assert found_whole.area == (bottom - top) * (right - left)
    assert not merged


def rectangle(top: int, left: int, bottom: int, right: int, score: float) -> FoundObject:
    return FoundObject(1, score, top, left, np.ones((bottom - top, right - left), bool), (left, top, right, bottom))


@pytest.mark.parametrize("missed", ["none", "large in the first", "small in the first", "small in the second"])
@pytest.mark.parametrize("score", [0.5, 0.8, 0.95])
def test_a_small_object_that_covers_most_of_a_cut_piece_takes_nothing_from_it(score: float, missed: str) -> None:
    """What both windows see of the large one is 25 columns wide, and the small one covers 18 of them."""
    first, second = Window(0, 0, 100, 100), Window(0, 75, 100, 175)
    large = [rectangle(10, 20, 60, 100, 0.9), rectangle(10, 75, 60, 160, 0.7)]
    small = [rectangle(12, 80, 58, 98, score), rectangle(12, 80, 58, 98, score - 0.1)]
    begin = {"large in the first": [small[0]], "small in the first": [large[0]]}.get(missed, [large[0], small[0]])
    end = [large[1]] if missed == "small in the second" else [large[1], small[1]]
    merged = merge([(first, begin), (second, end)], (100, 175))
    boxes = {(75 if missed == "large in the first" else 20, 10, 160, 60), (80, 12, 98, 58)}
    assert {each.box for each in merged} == boxes and len(merged) == 2


def test_whole_finds_of_two_sizes_are_one_object_unless_a_window_sees_both() -> None:
    first, second, size = Window(0, 0, 100, 100), Window(0, 50, 100, 150), (100, 150)
    large, small = rectangle(20, 55, 60, 90, 0.9), rectangle(30, 60, 50, 75, 0.8)
    assert merge([(first, [large]), (second, [small])], size) == [large]
    assert merge([(first, [large, small]), (second, [rectangle(20, 55, 60, 90, 0.7)])], size) == [large, small]


def test_a_piece_is_not_left_beside_the_whole_find_that_a_second_piece_belongs_to() -> None:
    first, second, third = Window(0, 0, 100, 100), Window(0, 50, 100, 150), Window(40, 0, 140, 100)
    whole = rectangle(45, 60, 90, 92, 0.9)
    found = [(first, [rectangle(45, 88, 90, 100, 0.6)]), (second, [whole]), (third, [rectangle(45, 60, 90, 100, 0.5)])]
    assert merge(found, (140, 150)) == [whole]


def test_a_piece_stays_if_a_find_over_it_and_over_a_whole_one_does_not() -> None:
    first, second = Window(0, 0, 100, 100), Window(0, 50, 100, 150)
    whole, piece = rectangle(20, 45, 60, 75, 0.9), rectangle(20, 78, 60, 100, 0.8)
    assert merge([(first, [whole, piece]), (second, [rectangle(20, 50, 60, 120, 0.7)])], (100, 150)) == [whole, piece]


@pytest.mark.parametrize("seed", range(3))
def test_finds_that_differ_between_windows_are_merged_where_disks_lie_in_disks(seed: int) -> None:
    """Masks move by up to a pixel between windows."""
    rng, size = np.random.default_rng(seed), (160, 230)
    y, x = np.mgrid[: size[0], : size[1]]
    disks = []
    for row in range(25, 150, 50):
        for column in range(25, 220, 50):
            middle, inner = np.array([row, column]) + rng.integers(-4, 5, 2), rng.integers(-8, 9, 2)
            disks += [(*middle, 18), (*(middle + inner), 6)]
    found = []
    for window in windows_of(size, (96, 96), 0.25):
        objects = []
        for row, column, radius in disks:
            down, right = rng.integers(-1, 2, 2)
            labels = ((y - row - down) ** 2 + (x - column - right) ** 2 <= radius**2).astype(np.int32)
            objects += objects_in(labels, window)
        for each in objects:
            each.score = float(rng.uniform(0.5, 1))
        found.append((window, sorted(objects, key=lambda each: -each.score)))
    merged = merge(found, size)
    assert sum(each.area > 600 for each in merged) == len(disks) // 2
    assert len(merged) <= len(disks) + 1  # a sliver of a small one may have no find to join


@pytest.mark.parametrize(
    ("size", "sides", "overlap"),
    [
        ((100, 100), (100, 100), 0.25),
        ((333, 77), (64, 32), 0.25),
        ((20, 500), (64, 64), 0.0),
        ((65, 64), (64, 64), 0.9),
    ],
)
def test_windows_cover_the_image_and_overlap(size: tuple[int, int], sides: tuple[int, int], overlap: float) -> None:
    windows = windows_of(size, sides, overlap)
    seen = np.zeros(size, int)
    for window in windows:
        assert (window.bottom - window.top, window.right - window.left) == tuple(map(min, sides, size))
        seen[window.top : window.bottom, window.left : window.right] += 1
    assert seen.min() >= 1
    lefts = sorted({window.left for window in windows})
    assert all(a + sides[1] * (1 - overlap) + 1 >= b for a, b in pairwise(lefts))


@pytest.mark.parametrize("seed", range(20))
def test_run_lengths_of_a_part_are_those_of_the_whole_mask(seed: int) -> None:
    rng = np.random.default_rng(seed)
    size = tuple(int(n) for n in rng.integers(1, 40, 2))
    whole = np.zeros(size, bool)
    top, left = (int(rng.integers(0, n)) for n in size)
    height, width = (int(rng.integers(1, n - start + 1)) for n, start in zip(size, (top, left), strict=True))
    part = rng.random((height, width)) < rng.choice([0.1, 0.5, 0.95, 1.0])
    whole[top : top + height, left : left + width] = part
    assert encode_part(part, top, left, size) == encode_mask(whole)  # type: ignore[arg-type]
    np.testing.assert_array_equal(coco.decode(encode_part(part, top, left, size)), whole)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(8))
def test_outlines_enclose_exactly_the_pixels_of_an_object(seed: int) -> None:
    """Connected or not, with holes: the centers inside the polygons are the mask."""
    rng = np.random.default_rng(seed)
    mask = ndimage.gaussian_filter(rng.normal(size=(40, 50)), 2.5) > 0.02
    shape = outline(FoundObject(1, 1.0, 7, 3, mask, (3, 7, 53, 47)))
    polygons = [shape["coordinates"]] if shape["type"] == "Polygon" else shape["coordinates"]
    assert (shape["type"] == "MultiPolygon") == (ndimage.label(mask)[1] > 1)
    inside = np.zeros((60, 60), bool)
    for outer, *holes in polygons:
        assert all(ring[0] == ring[-1] for ring in (outer, *holes))
        part = polygon2mask(inside.shape, np.array(outer)[:, ::-1] - 0.5)
        for hole in holes:
            part &= ~polygon2mask(inside.shape, np.array(hole)[:, ::-1] - 0.5)
        inside |= part
    expected = np.zeros_like(inside)
    expected[7:47, 3:53] = mask
    np.testing.assert_array_equal(inside, expected)


@pytest.mark.parametrize("scores", [(0.9, 0.6, 0.6), (0.9, 0.9, 0.8)])
@pytest.mark.parametrize("shift", [-4, 4])
def test_results_are_painted_as_the_objects_that_they_are_of(scores: tuple[float, ...], shift: int) -> None:
    """Of equally large ones the better one is on top, wherever it lies, or the first."""
    masks = [np.ones((10, 10), bool)] * 3
    places = [20 + shift * k for k in range(3)]
    objects = [
        FoundObject(1, score, place, place, mask, (place, place, place + 10, place + 10))
        for score, place, mask in zip(scores, places, masks, strict=True)
    ]
    found = Prediction(tuple(objects), (40, 40), ("gland",))
    results = [each.result(found.size, (1,), True) for each in objects]
    np.testing.assert_array_equal(label_map_of(results, found.size, 0.5), found.label_map())
    assert (found.label_map() == 1).sum() == 100 > (found.label_map() == 2).sum()


def test_label_maps_are_painted_in_bands(tmp_path, monkeypatch) -> None:
    """As the whole map at once; the smaller object is on top, or the better. Many objects become a TIFF."""
    from PIL import Image

    labels = blobs(3)
    objects = objects_in(labels, Window(0, 0, *labels.shape))
    objects[:0] = [FoundObject(1, 1.0, 20, 30, np.ones((70, 1), bool), (30, 20, 31, 90))] * 2
    found = Prediction(tuple(objects), labels.shape, ("gland",))
    monkeypatch.setattr("densepath.transfer.detection.prediction_files._BAND", 32)
    path = write_label_map(found, tmp_path / "a")
    with Image.open(path) as image:
        assert image.mode.startswith("I") and path.name == "a.png"
        np.testing.assert_array_equal(np.asarray(image), found.label_map())
    assert set(found.label_map()[20:90, 30]) == {1}
    monkeypatch.setattr("densepath.transfer.detection.prediction_files._MOST_IN_16_BITS", 3)
    import tifffile

    np.testing.assert_array_equal(tifffile.imread(write_label_map(found, tmp_path / "a")), found.label_map())
