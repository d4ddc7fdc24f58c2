import random

import numpy as np
import pytest
import torch

from densepath.runs.checkpoints import read_checkpoint, write_checkpoint
from densepath.training.random_state import (
    random_state,
    seed_generators,
    set_random_state,
    untouched_generators,
)


def draw():
    # An odd number of normal numbers leaves one in the generators' caches.
    return random.gauss(0, 1), random.random(), np.random.randn(3).tolist(), torch.randn(3).tolist()


@pytest.fixture(autouse=True)
def _leave_generators_alone():
    with untouched_generators():
        yield


def test_generators_continue_from_a_state_that_was_on_disk(tmp_path):
    draw()
    path = write_checkpoint(tmp_path, {"step": 0, "state_dict": {}, "random": random_state()})
    expected = draw()
    draw()
    set_random_state(read_checkpoint(path)["random"])
    assert draw() == expected


def test_seeds_and_ranks_give_streams_of_their_own():
    drawn = []
    for seed, rank in ((0, 0), (0, 1), (1, 0)):
        seed_generators(seed, rank)
        drawn.append(draw())
    assert drawn[0] != drawn[1] and drawn[0] != drawn[2]
    seed_generators(0, 0)
    assert draw() == drawn[0]


def test_numbers_drawn_in_the_context_change_no_later_ones():
    seed_generators(5, 0)
    expected = draw()
    seed_generators(5, 0)
    with untouched_generators():
        draw()
    assert draw() == expected
