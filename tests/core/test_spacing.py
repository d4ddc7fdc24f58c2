"""A few of many positions."""

import itertools

import pytest

from densepath.core.spacing import evenly_spaced


@pytest.mark.parametrize(("count", "of"), [(0, 9), (1, 9), (4, 10), (8, 8), (9, 3), (7, 1000)])
def test_positions_are_distinct_ordered_and_as_even_as_possible(count, of):
    places = evenly_spaced(count, of)
    assert len(places) == min(count, of) and places == sorted(set(places))
    if len(places) > 1:
        steps = {b - a for a, b in itertools.pairwise(places)}
        assert (places[0], places[-1]) == (0, of - 1) and max(steps) - min(steps) <= 1
