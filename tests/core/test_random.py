"""Counter-based randomness: published answers, uniformity, independence, and a shuffle that is a permutation."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from densepath.core import random
from densepath.core.random import bits, permute, permute_blocks, philox, shuffled, split_mix, uniform


def words(*values: int) -> tuple[torch.Tensor, ...]:
    return tuple(torch.tensor([value]) for value in values)


# The known answers that Random123 publishes for philox4x32-10.
@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_published_answers(counter, key, answer):
    assert tuple(philox(words(*counter), key)[0].tolist()) == answer


def test_split_mix_gives_the_published_answers():
    """Those of the reference implementation for the seed 1234567."""
    made = [word % 2**64 for word in split_mix(torch.tensor(1234567), torch.arange(1, 6)).tolist()]
    assert made == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


def test_philox_in_parts_and_by_tensor_operations_is_the_same(monkeypatch):
    counter = tuple(torch.arange(50) * factor % 2**32 for factor in (1, 2**31 + 5, 7, 2**32 - 1))
    together = philox(counter, (5, 2**32 - 1))
    monkeypatch.setattr(random, "_CHUNK", 7)
    assert torch.equal(philox(counter, (5, 2**32 - 1)), together)
    assert torch.equal(random._philox(counter, (5, 2**32 - 1)), together)


def test_a_compiler_gets_the_same_numbers():
    index = torch.arange(5)
    compiled = torch.compile(lambda: (uniform(7, 3, index, 1, 2), split_mix(index, index + 1)), backend="eager")
    made, expected = compiled(), (uniform(7, 3, index, 1, 2), split_mix(index, index + 1))
    assert all(torch.equal(own, other) for own, other in zip(made, expected, strict=True))


def test_numbers_are_uniform():
    numbers = uniform(7, 3, torch.arange(50_000), view=1, stream=2).double().numpy()
    assert numbers.min() >= 0 and numbers.max() < 1
    for column in numbers.T:
        assert stats.kstest(column, "uniform").pvalue > 1e-3


@pytest.mark.parametrize("change", ["seed", "epoch", "index", "view", "stream", "column"])
def test_numbers_of_different_uses_are_independent(change):
    index = torch.arange(40_000)
    at = {"seed": 5, "epoch": 2, "index": index, "view": 0, "stream": 1}
    first = uniform(**at)[:, 0]
    second = uniform(**at)[:, 1] if change == "column" else uniform(**{**at, change: at[change] + 1})[:, 0]
    table, *_ = np.histogram2d(first.numpy(), second.numpy(), bins=16, range=((0, 1), (0, 1)))
    assert stats.chi2_contingency(table).pvalue > 1e-3


def test_numbers_of_an_image_do_not_depend_on_its_batch():
    together = bits(1, 2, torch.arange(100), 3, 4)
    alone = torch.cat([bits(1, 2, torch.tensor([i]), 3, 4) for i in range(100)])
    assert torch.equal(together, alone)


def test_large_indices_and_seeds_do_not_collide():
    index = torch.tensor([5, 5 + 2**32, 5 + 2**40])
    assert len({tuple(row) for row in bits(0, 0, index, 0, 0).tolist()}) == 3
    assert not torch.equal(bits(1, 0, index, 0, 0), bits(1 + 2**32, 0, index, 0, 0))


@settings(max_examples=30)
@given(n=st.integers(1, 3000), seed=st.integers(0, 2**63), epoch=st.integers(0, 2**31))
def test_shuffle_is_a_permutation(n, seed, epoch):
    assert torch.equal(permute(torch.arange(n), n, seed, epoch).sort().values, torch.arange(n))


def test_shuffle_reaches_every_order_equally_often():
    orders = Counter(tuple(permute(torch.arange(4), 4, seed, 0).tolist()) for seed in range(1200))
    assert len(orders) == 24
    assert stats.chisquare(list(orders.values())).pvalue > 1e-3


def test_a_shuffled_batch_has_any_order_equally_often():
    orders = Counter(tuple(shuffled(4, seed, 0).tolist()) for seed in range(1200))
    assert len(orders) == 24 and all(sorted(order) == [0, 1, 2, 3] for order in orders)
    assert stats.chisquare(list(orders.values())).pvalue > 1e-3
    assert not torch.equal(shuffled(64, 0, 0), shuffled(64, 0, 1))


def test_shuffle_sends_positions_everywhere():
    n = 10_000
    places = torch.stack([permute(torch.arange(n), n, 11, epoch) for epoch in range(20)])
    for row in places[:5]:
        # Neighbours in the epoch are strangers in the source.
        assert abs(stats.spearmanr(row[:-1], row[1:]).statistic) < 0.05
        assert abs(stats.spearmanr(row, np.arange(n)).statistic) < 0.05
    assert abs(stats.spearmanr(places[0], places[1]).statistic) < 0.05
    assert stats.kstest(places[:, 17].numpy() / n, "uniform").pvalue > 1e-3


def test_shuffle_of_a_billion_costs_what_one_of_a_thousand_does():
    position = torch.arange(1000) * 999_983
    taken = permute(position, 10**9, 0, 0)
    assert len(taken.unique()) == 1000 and taken.min() >= 0 and taken.max() < 10**9


@pytest.mark.parametrize(("n", "block", "window"), [(1, 4, 3), (10, 16, 64), (48, 4, 3), (901, 7, 5), (500, 1, 1)])
def test_an_order_of_blocks_has_each_item_once(n, block, window):
    order = permute_blocks(torch.arange(n), n, block, window, 5, epoch=2)
    assert torch.equal(order.sort().values, torch.arange(n))
    some = torch.arange(0, n, 7)
    assert torch.equal(permute_blocks(some, n, block, window, 5, epoch=2), order[some])


def test_an_order_of_blocks_reads_few_blocks_at_a_time_and_mixes_their_items():
    n, block, window = 10_007, 16, 8
    order = permute_blocks(torch.arange(n), n, block, window, 3, epoch=0)
    parts = order[: n // 128 * 128].view(-1, 128)
    blocks = torch.tensor([len(part.unique()) for part in parts // block])
    assert (blocks == window).float().mean() > 0.85  # all but those of the last, incomplete block
    assert abs(stats.spearmanr(order[:-1], order[1:]).statistic) < 0.2
    starts = torch.stack([permute_blocks(torch.arange(128), n, block, window, 3, epoch) for epoch in range(30)])
    assert stats.kstest(starts[:, 17].numpy() / n, "uniform").pvalue > 1e-3
    # A window's items come in any order
    inside = torch.stack([part.argsort() for part in parts[blocks == window]]).float()
    assert stats.kstest(inside[:, 5].numpy() / 128, "uniform").pvalue > 1e-3
    assert permute_blocks(torch.tensor([10**9]), 10**10, block, window, 0, 0).shape == (1,)
