"""Label maps of many labels against a float64 loop, and against the masks of a few."""

import math

import numpy as np
import pytest
import torch

from densepath.core import labels as core_labels
from densepath.core.affine import TIE, compose, from_box, identity, label_shares, union, warp_labels
from densepath.core.labels import main_labels, number_together


def crops(count: int, low: float = 0.2) -> torch.Tensor:
    """Random boxes inside the image, half of them flipped."""
    side = low + (1 - low) * torch.rand(count, 2)
    center = (1 - side) * (2 * torch.rand(count, 2) - 1)
    maps = from_box(center - side, center + side)
    maps[::2, 0, 0] *= -1
    return maps


def turns(degrees: float) -> torch.Tensor:
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return torch.tensor([[[cos, -sin, 0], [sin, cos, 0]]])


def loop_main_labels(labels: np.ndarray, view: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Shares of area by explicit intersections of rectangles; of equal shares the smallest label."""
    height, width = labels.shape
    out = np.full(size, -1)
    for i, j in np.ndindex(*size):
        x = sorted((view[0, 0] * (2 * (j + e) / size[1] - 1) + view[0, 2] + 1) / 2 * width for e in (0, 1))
        y = sorted((view[1, 1] * (2 * (i + e) / size[0] - 1) + view[1, 2] + 1) / 2 * height for e in (0, 1))
        shares: dict[int, float] = {}
        for r, c in np.ndindex(height, width):
            across, down = min(x[1], c + 1) - max(x[0], c), min(y[1], r + 1) - max(y[0], r)
            if across > 0 and down > 0:
                share = across * down / ((x[1] - x[0]) * (y[1] - y[0]))
                shares[labels[r, c]] = shares.get(labels[r, c], 0.0) + share
        most = max(shares.values())
        out[i, j] = min(label for label, share in shares.items() if share >= most - TIE)
    return out


@pytest.mark.parametrize("most", [60, 30000])
def test_each_position_takes_the_label_with_the_largest_area(most):
    """By the table of a few labels, and by the sorting of many."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, most, (6, 12, 15)).repeat(2, axis=1)
    maps = crops(6)
    ours = main_labels(torch.tensor(labels, dtype=torch.int16), identity(6), maps, (5, 7)).numpy()
    for image in range(6):
        assert np.array_equal(ours[image], loop_main_labels(labels[image], maps[image].double().numpy(), (5, 7)))
    assert len(np.unique(ours)) > 45


@pytest.mark.parametrize("few", [0, 1024])
@pytest.mark.parametrize("d", [2, 3])
def test_few_labels_are_those_of_their_masks(d, few, monkeypatch):
    """Crops, flips, quarter turns and rotations in one batch, from one view to another."""
    monkeypatch.setattr(core_labels, "_FEW", few)
    for trial in range(4):
        spatial, size = ((13, 17, 9)[:d], (7, 5, 4)[:d])
        labels = torch.randint(-1, 5, (8, *spatial))
        low = torch.rand(8, d) - 1
        maps = from_box(low, low + 0.2 + 0.8 * torch.rand(8, d))
        maps[::2, 0, 0] *= -1
        if d == 2:
            maps[:3] = compose(maps[:3], torch.cat([turns(90 * k) for k in (1, 2, 3)]))
            maps[3:5] = compose(maps[3:5] * 0.6, torch.cat((turns(17.0 + trial), turns(-40.0))))
        reference = union(maps, maps.flip(0))
        masks = warp_labels(labels, reference, maps, size, 5)[0]
        shares = label_shares(labels, reference, maps, size, 5).sort(dim=1).values
        by_chance = (shares[:, -1] - shares[:, -2]) < 2e-5  # so close that each may round in its own way
        assert by_chance.float().mean() < 0.1
        assert torch.equal(main_labels(labels, reference, maps, size)[~by_chance], masks[~by_chance])


def test_the_labels_of_a_turned_map_are_its_own():
    """Independent of the rest of the batch, and of the share of an image that a view shows."""
    labels = torch.randint(0, 9, (3, 80, 80))
    maps = torch.cat([scale * turns(33.0) for scale in (0.1, 0.3, 0.7)])
    alone = [main_labels(labels[i : i + 1], identity(1), maps[i : i + 1], (6, 6)) for i in range(3)]
    assert torch.equal(main_labels(labels, identity(3), maps, (6, 6)), torch.cat(alone))


@pytest.mark.parametrize("few", [0, 1024])
def test_equal_shares_go_to_the_smallest_label(few, monkeypatch):
    """Whatever the position: thirds and sevenths have no finite binary representation."""
    monkeypatch.setattr(core_labels, "_FEW", few)
    for count in (2, 3, 7, 11, 37, 80):
        labels = (torch.arange(count).flip(0) + 5).view(1, 1, -1).expand(count - 1, -1, -1)
        left = 2 * torch.arange(count - 1) / count - 1
        low, high = (
            torch.stack((left, -torch.ones(count - 1)), 1),
            torch.stack((left + 4 / count, torch.ones(count - 1)), 1),
        )
        pairs = main_labels(labels, identity(count - 1), from_box(low, high), (1, 1))
        assert torch.equal(pairs.flatten(), torch.arange(count - 1).flip(0) + 5)


@pytest.mark.parametrize("few", [0, 1024])
def test_outside_and_unlabelled_positions_have_no_label(few, monkeypatch):
    monkeypatch.setattr(core_labels, "_FEW", few)
    labels = torch.full((1, 4, 4), 3)
    labels[:, 2:] = -1
    beyond = from_box(torch.tensor([[0.0, -1.0]]), torch.tensor([[2.0, 1.0]]))
    expected = torch.tensor([[3, 3, -1, -1], [3, 3, -1, -1], [-1] * 4, [-1] * 4])
    assert torch.equal(main_labels(labels, identity(1), beyond, (4, 4))[0], expected)
    part = from_box(torch.tensor([[0.8, -1.0]]), torch.tensor([[1.8, 1.0]]))
    assert torch.equal(
        main_labels(labels, identity(1), part, (2, 2))[0], torch.full((2, 2), -1)
    )  # 40% of two lie inside


def test_labels_are_numbered_in_the_order_of_the_first_map():
    first = torch.tensor([[[700, 700, 9], [-1, 31, 9]], [[5, 5, 5], [5, 5, 5]]])
    second = torch.tensor([[[9, 8, 700]], [[5, -1, 0]]])
    numbered = number_together(first, second)
    assert torch.equal(numbered[0], torch.tensor([[[0, 0, 1], [-1, 2, 1]], [[0] * 3, [0] * 3]]))
    assert torch.equal(numbered[1], torch.tensor([[[1, -1, 0]], [[0, -1, -1]]]))
