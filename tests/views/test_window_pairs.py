"""Pairs of windows with a minimum IoU, against rejection sampling."""

import pytest
import torch
from scipy import stats

from densepath.core.affine import bounds
from densepath.sources.batch import ImageBatch
from densepath.sources.pixel_source import PixelSpec
from densepath.views.crops import SecondWindow, WindowPair
from densepath.views.declarations import RandomView
from densepath.views.maker import ViewMaker
from densepath.views.random_streams import Draw
from densepath.views.window_pairs import _limit, _set_weights, place_pairs, window_pairs

# (windows, threshold, sides of the room): wide, and with one axis along which windows hardly move.
CASES = [
    ([(40, 30), (20, 28), (60, 18)], 0.2, (160, 150)),
    ([(40, 30), (20, 28), (60, 18)], 0.2, (160, 34)),
    ([(32, 64, 64), (48, 96, 96), (96, 80, 80)], 0.25, (260, 240, 230)),
    ([(32, 64, 64), (48, 96, 96), (96, 80, 80)], 0.25, (102, 240, 130)),
    ([(8, 8, 8)], 0.5, (9, 9, 9)),
]
IDS = ["2D", "2D narrow", "3D", "3D narrow", "3D tiny"]


def draw_of(count: int) -> Draw:
    return Draw(0, 0, torch.arange(count), torch.zeros(count, dtype=torch.int64))


def iou_of(low_a, low_b, a, b):
    overlap = (torch.minimum(low_a + a, low_b + b) - torch.maximum(low_a, low_b)).clamp(min=0).prod(-1)
    return overlap / (a.prod(-1) + b.prod(-1) - overlap)


def brute_force(windows: torch.Tensor, threshold: float, room: torch.Tensor, count: int, equal: bool):
    """Draw both windows evenly, keep those that overlap enough."""
    generator = torch.Generator().manual_seed(1)
    kept = []
    while sum(map(len, kept)) < count:
        which = torch.randint(len(windows), (200_000, 2), generator=generator)
        a, b = windows[which[:, 0]], windows[which[:, 0 if equal else 1]]
        low_a = torch.rand(a.shape, generator=generator, dtype=torch.float64) * (room - a)
        low_b = torch.rand(a.shape, generator=generator, dtype=torch.float64) * (room - b)
        good = iou_of(low_a, low_b, a, b) > threshold
        kept.append(torch.cat((low_a, low_b, a, b), 1)[good])
    return torch.cat(kept)[:count].chunk(4, 1)


@pytest.mark.parametrize("equal", [True, False], ids=["equal", "any"])
@pytest.mark.parametrize(("windows", "threshold", "room"), CASES, ids=IDS)
def test_pairs_are_those_that_rejection_finds(windows, threshold, room, equal):
    count = 6_000
    sizes, sides = torch.tensor(windows, dtype=torch.float64), torch.tensor(room, dtype=torch.float64)
    first = sizes.repeat_interleave(1 if equal else len(sizes), 0)
    second = sizes if equal else sizes.repeat(len(sizes), 1)
    ours = place_pairs(first, second, threshold, sides.expand(count, -1), draw_of(count))
    theirs = brute_force(sizes, threshold, sides, count, equal)
    assert (iou_of(*ours) > threshold - 1e-9).all()
    for low, window in zip(ours[:2], ours[2:], strict=True):
        assert (low >= -1e-9).all() and (low + window <= sides + 1e-9).all()
    columns = {"iou": iou_of, "volume of both": lambda p, q, a, b: a.prod(-1) * b.prod(-1)}
    for axis in range(len(room)):
        columns[f"place along {axis}"] = lambda p, q, a, b, axis=axis: p[:, axis]
        columns[f"offset along {axis}"] = lambda p, q, a, b, axis=axis: (q + b / 2 - p - a / 2)[:, axis]
    for name, column in columns.items():
        test = stats.ks_2samp(column(*ours).numpy(), column(*theirs).numpy())
        assert test.pvalue > 1e-3, (name, test)


@pytest.mark.parametrize("d", [2, 3])
def test_the_measure_of_displacements_is_that_of_counting(d):
    generator = torch.Generator().manual_seed(d)
    for threshold in (0.1, 0.25, 0.6):
        a = 20 + 40 * torch.rand(d, generator=generator, dtype=torch.float64)
        b = a * (0.8 + 0.4 * torch.rand(d, generator=generator, dtype=torch.float64))
        wide = torch.ones(d, dtype=torch.bool)
        measure = _set_weights(a, b, wide, _limit(a, b, threshold)).sum()
        reach = (a + b) / 2
        center = (2 * torch.rand(500_000, d, generator=generator, dtype=torch.float64) - 1) * reach
        low_a, low_b = -a / 2, center - b / 2
        counted = (iou_of(low_a, low_b, a, b) > threshold).double().mean() * (2 * reach).prod()
        assert measure.item() == pytest.approx(counted.item(), rel=0.01)


def test_pairs_are_a_function_of_only_the_image_and_become_two_views():
    """Windows keep off the border, have a size of the list, and overlap enough, before each is flipped on its own."""
    spec = PixelSpec(3, 1, mean=(0.0,), std=(1.0,))
    pair = WindowPair(windows=((16, 24, 24), (12, 30, 30)), iou=0.3, border=(2, 4, 4), flip=(0.5, 0.5, 0.5))
    views = {"first": RandomView(pair), "second": RandomView(SecondWindow(of="first"))}
    sizes = torch.tensor([[40, 80, 80], [18, 50, 60], [10, 28, 90]] * 40)
    maker = ViewMaker(views, (8, 12, 12), 0, spec)
    index = torch.arange(120)
    plan = maker.draw(index, sizes)
    part = maker.draw(index[7:20], sizes[7:20])
    for name in views:
        assert torch.equal(plan.views[name].map[7:20], part.views[name].map)
    corners = []
    for name in views:
        low, high = ((edge.flip(-1) + 1) / 2 * sizes for edge in bounds(plan.views[name].map))
        roomy = torch.minimum(torch.tensor([2, 4, 4]), (sizes - torch.tensor([16, 30, 30])).clamp(min=0) // 2)
        assert (low >= roomy - 1e-3).all() and (high <= sizes - roomy + 1e-3).all()
        corners.append((low.double(), (high - low).double()))
    (low_a, a), (low_b, b) = corners
    assert iou_of(low_a, low_b, a, b).min() > 0.3 - 1e-4
    torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-4)
    cut = {tuple(torch.minimum(torch.tensor(w), s).tolist()) for w in pair.windows for s in sizes[:3]}
    assert {tuple(side.tolist()) for side in a.round().long()} == cut
    flips = [(plan.views[name].map[..., :3].diagonal(dim1=1, dim2=2) < 0) for name in views]
    assert 0.3 < (flips[0] == flips[1]).float().mean() < 0.7
    volumes = torch.randint(0, 256, (3, 40, 80, 90, 1), dtype=torch.uint8)
    assert maker(ImageBatch(volumes, sizes[:3], index[:3]))["second"].pixels.shape == (3, 1, 8, 12, 12)


def test_few_pairs_are_given_up():
    """Whether eight proposals are enough: a pair with a common center is one that was given up."""
    pair = WindowPair(windows=((32, 64, 64), (48, 96, 96), (96, 96, 96), (16, 32, 32)), iou=0.25, equal=False)
    for size in ((300, 320, 320), (155, 240, 240), (110, 200, 200)):
        first, second = window_pairs(pair, torch.tensor([size] * 4000), draw_of(4000))
        concentric = ((first[..., -1] - second[..., -1]).abs() < 1e-6).all(-1)
        assert concentric.float().mean() < 0.01
