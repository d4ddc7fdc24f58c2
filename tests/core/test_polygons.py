"""Polygons of masks have exactly their pixels, and no points on straight lines."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from densepath.core.geojson import area_of, fill_geometry
from densepath.core.polygons import fill, polygons_of


def test_the_outline_of_a_rectangle_has_its_corners_only() -> None:
    mask = np.zeros((60, 80), bool)
    mask[10:50, 20:70] = True
    ((ring,),) = polygons_of(mask)
    assert len(ring) == 9 and (ring[0] == ring[-1]).all()  # two at each corner, which is cut
    assert (*ring.min(axis=0), *ring.max(axis=0)) == (20, 10, 70, 50)


@pytest.mark.parametrize("seed", range(4))
def test_polygons_drawn_again_are_the_mask(seed: int) -> None:
    """Of blobs with holes, single pixels and parts that touch at a corner."""
    noise = np.random.default_rng(seed).normal(size=(70, 90))
    mask = ndimage.gaussian_filter(noise, 1.0 + seed) > 0
    mask[0, 0] = mask[1, 1] = True
    drawn = np.zeros((80, 100), bool)
    for rings in polygons_of(mask, top=4, left=6):
        for ring in rings:
            before, after = np.diff(ring[[-2, *range(len(ring))]], axis=0)[:-1], np.diff(ring, axis=0)
            assert (before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]).all()
        top, left, part = fill(rings, 80, 100)
        drawn[top : top + part.shape[0], left : left + part.shape[1]] |= part
    assert np.array_equal(drawn[4:74, 6:96], mask) and drawn.sum() == mask.sum()


def test_an_ellipse_of_qupath_has_the_area_inside_its_bounds():
    box = {"type": "Polygon", "coordinates": [[[10, 20], [50, 20], [50, 40], [10, 40], [10, 20]]], "isEllipse": True}
    assert area_of(box) == pytest.approx(np.pi * 20 * 10)
    top, left, mask = fill_geometry(box, 100, 100)
    assert (top, left, mask.shape) == (20, 10, (20, 40)) and mask.sum() == pytest.approx(area_of(box), rel=0.02)
    assert area_of({**box, "isEllipse": False}) == 800
