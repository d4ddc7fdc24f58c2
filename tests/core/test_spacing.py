"""A few of many positions or values."""

import itertools

import numpy as np
import pytest

from densepath.core.spacing import evenly_spaced, some_values


@pytest.mark.parametrize(("count", "of"), [(0, 9), (1, 9), (4, 10), (8, 8), (9, 3), (7, 1000)])
def test_positions_are_distinct_ordered_and_as_even_as_possible(count, of):
    places = evenly_spaced(count, of)
    assert len(places) == min(count, of) and places == sorted(set(places))
    if len(places) > 1:
        steps = {b - a for a, b in itertools.pairwise(places)}
        assert (places[0], places[-1]) == (0, of - 1) and max(steps) - min(steps) <= 1


@pytest.mark.parametrize("axis", range(3))
def test_some_values_are_of_all_slices(axis):
    number = np.indices((16, 16, 12))[axis]  # in memory every 12th value is of one slice
    counts = np.bincount(some_values(number, 256).ravel())
    assert len(counts) == number.shape[axis] and counts.min() > 0 and counts.sum() == 256
    assert np.array_equal(some_values(number, number.size), number.ravel())
