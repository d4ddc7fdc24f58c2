"""Outlines are drawn as pycocotools draws them, in bounded time and memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as oracle

from densepath.annotations import outlines
from densepath.annotations.outlines import LONGEST, draw, part_of, union

# pycocotools' way to make arrays is older than NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

HEIGHT, WIDTH = 40, 61


def drawn(segmentation: Any) -> np.ndarray:
    return oracle.decode(draw(segmentation, HEIGHT, WIDTH)[0]).astype(bool)


def expected(polygons: list[list[float]]) -> np.ndarray:
    return oracle.decode(oracle.merge(oracle.frPyObjects(polygons, HEIGHT, WIDTH))).astype(bool)


POLYGON = st.lists(st.decimals(-90, 90, places=1).map(float), min_size=6, max_size=20).filter(lambda p: not len(p) % 2)


@given(polygons=st.lists(POLYGON, min_size=1, max_size=3))
def test_polygons_in_the_image_and_beyond_are_those_of_pycocotools(polygons: list[list[float]]) -> None:
    outline, bounds = draw(polygons, HEIGHT, WIDTH)
    np.testing.assert_array_equal(oracle.decode(outline), expected(polygons))
    points = np.concatenate([np.reshape(polygon, (-1, 2)) for polygon in polygons])
    np.testing.assert_array_equal(bounds, [*points.min(0), *points.max(0)])


@given(polygons=st.lists(POLYGON, max_size=6), seed=st.integers(0, 9))
def test_the_union_is_that_of_the_masks(polygons: list[list[float]], seed: int) -> None:
    random = np.random.default_rng(seed).random((HEIGHT, WIDTH)) < 0.2
    random[:, -1] = seed % 2  # a run up to the end of the image
    runs = oracle.encode(np.asfortranarray(random, np.uint8))
    all_outlines = [{"size": [HEIGHT, WIDTH], "counts": runs["counts"].decode()}]
    all_outlines += [draw([polygon], HEIGHT, WIDTH)[0] for polygon in polygons]
    masks = [random, *(expected([polygon]) for polygon in polygons)]
    np.testing.assert_array_equal(union(all_outlines, HEIGHT, WIDTH), np.any(masks, axis=0))
    assert not union([], HEIGHT, WIDTH).any()


def test_a_long_polygon_is_clipped_to_its_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """Corners on whole pixels, and sides that meet the image's at whole pixels: nothing is rounded."""
    polygon = [10, -300, 50, -300, 50, 20, 350, 320, 350, 350, 10, 350]
    monkeypatch.setattr(outlines, "LONGEST", 500)
    np.testing.assert_array_equal(drawn([polygon]), expected([polygon]))
    outside = [100, 100, 300, 100, 300, 300]
    assert not drawn([outside]).any()
    around = [-300, -300, 300, -300, 300, 300, -300, 300]
    assert drawn([around]).all()


@pytest.mark.parametrize("far", [1, 10])
def test_a_polygon_of_megabytes_is_refused_and_takes_no_memory(far: int, bounded_memory: Callable[..., Any]) -> None:
    corners = np.random.default_rng(0).uniform(-far * 1000 + 1000, far * 1000, (100_000, 2)).ravel().tolist()
    with bounded_memory(100), pytest.raises(ValueError, match=f"outlines longer than {LONGEST:,} px"):
        draw([corners], 1000, 1000)


def test_many_small_corners_are_drawn() -> None:
    angle = np.linspace(0, 2 * np.pi, 100_000)
    circle = np.stack([500 + 300 * np.cos(angle), 500 + 300 * np.sin(angle)], 1)
    area = oracle.decode(draw([circle.ravel().tolist()], 1000, 1000)[0]).sum()
    assert area == pytest.approx(np.pi * 300**2, rel=0.01)


def test_the_union_of_thousands_takes_a_moment() -> None:
    """As masks they would take 20 GB."""
    places = np.random.default_rng(0).uniform(0, 990, (20_000, 2))
    squares = [draw([[x, y, x + 5, y, x + 5, y + 5, x, y + 5]], 1000, 1000)[0] for x, y in places.round(1).tolist()]
    start = time.process_time()  # of this process, whatever else the machine does
    covered = union(squares, 1000, 1000)
    assert time.process_time() - start < 5
    expected_share = 1 - (1 - 25 / 990**2) ** 20_000
    assert covered[5:985, 5:985].mean() == pytest.approx(expected_share, rel=0.03)


@given(
    st.lists(st.integers(0, 60), min_size=1, max_size=12),
    st.tuples(*[st.integers(0, 11)] * 2, *[st.integers(1, 12)] * 2),
)
def test_a_part_of_a_mask_is_that_of_the_whole_one(edges: list[int], place: tuple[int, int, int, int]) -> None:
    mask = np.zeros(144, np.uint8)
    for edge in edges:
        mask[edge : 2 * edge + 7] ^= 1
    mask = np.asfortranarray(mask.reshape(12, 12).T)
    top, left, rows, columns = place
    rows, columns = min(rows, 12 - top), min(columns, 12 - left)
    outline = {"size": [12, 12], "counts": oracle.encode(mask)["counts"].decode()}
    np.testing.assert_array_equal(
        part_of(outline, top, left, (rows, columns)), mask[top : top + rows, left : left + columns].astype(bool)
    )
