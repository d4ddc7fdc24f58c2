"""Corruptions of images and volumes against plain loops."""

import itertools

import numpy as np
import pytest
import torch

from densepath.views import local_shuffle, window_permutations
from densepath.views.corruptions import Bezier, Cutout, Painting, bezier_tables, painted_blocks
from densepath.views.local_shuffle import LocalShuffle, shuffle_windows
from densepath.views.random_streams import Draw, Stream
from densepath.views.window_permutations import largest_window, last_windows, shuffled_positions

SHAPES = [(6, 1, 34, 40), (6, 2, 20, 24, 22)]
DIMENSIONS = pytest.mark.parametrize("shape", SHAPES, ids=["2D", "3D"])


def draw_of(count: int, start: int = 0) -> Draw:
    return Draw(3, 1, torch.arange(start, start + count), torch.full((count,), 2))


def bezier_by_loop(value: float, points: list[float], falling: bool) -> float:
    """The released code: a fine curve, whose x, or x and y, are sorted, then interpolated."""
    t = np.linspace(0.0, 1.0, 4000)
    xs, ys = (3 * points[i] * t * (1 - t) ** 2 + 3 * points[i + 2] * t**2 * (1 - t) + t**3 for i in (0, 1))
    xs, ys = xs[::-1], ys[::-1]  # the released code runs from (1, 1) to (0, 0)
    return float(np.interp(value, np.sort(xs), ys if falling else np.sort(ys)))


@DIMENSIONS
def test_bezier_remaps_by_the_curve(shape):
    x, draw = torch.rand(20, *shape[1:]), draw_of(20)
    result = Bezier(0.7).apply(x.clone(), draw)
    kinds = set()
    for row in range(20):
        if draw(Stream.BEZIER)[row, 0] >= 0.7:
            assert torch.equal(result[row], x[row])
            continue
        falling = bool(draw(Stream.BEZIER)[row, 1] < 0.5)
        kinds.add(falling)
        points = draw(Stream.BEZIER_POINTS)[row].tolist()
        values, made = x[row].flatten()[:20], result[row].flatten()[:20]
        expected = torch.tensor([bezier_by_loop(value, points, falling) for value in values.tolist()])
        torch.testing.assert_close(made, expected, atol=2e-3, rtol=0)
    assert kinds == {True, False}
    table = bezier_tables(torch.rand(50, 4), torch.arange(50) % 2 == 0)
    assert (table[1::2].diff() >= 0).all() and (table[::2].diff() <= 0).all()
    assert table.amin() == 0 and table.amax() == 1


@DIMENSIONS
def test_painting_puts_noise_inside_or_outside_of_blocks(shape):
    count = 40
    x = torch.rand(count, *shape[1:]) + 2  # noise is at most 1
    draw = draw_of(count)
    result = Painting(0.8, 0.5).apply(x.clone(), draw)
    size, seen = shape[2:], set()
    for row in range(count):
        if draw(Stream.PAINTING)[row, 0] >= 0.8:
            assert torch.equal(result[row], x[row])
            continue
        inside = bool(draw(Stream.PAINTING)[row, 1] < 0.5)
        low, high = painted_blocks(draw, [row], torch.tensor(size), torch.tensor([inside]), 5)
        covered = np.zeros(size, bool)
        blocks = 0
        for start, end in zip(low[0].tolist(), high[0].tolist(), strict=True):
            if start == end:
                continue
            blocks += 1
            for n, s, e in zip(size, start, end, strict=True):
                least, most = (n // 6, n // 3) if inside else (n - 4 * n // 7, n - 3 * n // 7)
                assert least <= e - s <= most and s >= 3 and e <= n - 3
            covered[tuple(slice(s, e) for s, e in zip(start, end, strict=True))] = True
        seen.add((inside, blocks))
        noisy = torch.from_numpy(covered == inside).expand(shape[1:])
        assert torch.equal(result[row] <= 1, noisy) and torch.equal(result[row][~noisy], x[row][~noisy])
    assert {inside for inside, _ in seen} == {True, False} and len(seen) > 2


def test_cutout_covers_squares_cut_at_the_borders():
    x, draw = torch.rand(20, 3, 32, 40), draw_of(20)
    result = Cutout(3, 0.25, (0.1, 0.2, 0.3)).apply(x.clone(), draw)
    for row in range(20):
        expected = x[row].clone()
        for hole in range(3):
            top, left = ((draw(Stream.CUTOUT + hole)[row, :2] * torch.tensor([32, 40])).long() - 4).tolist()
            for i, j in itertools.product(range(top, top + 8), range(left, left + 8)):
                if 0 <= i < 32 and 0 <= j < 40:
                    expected[:, i, j] = torch.tensor([0.1, 0.2, 0.3])
        assert torch.equal(result[row], expected)


def test_holes_in_volumes_cover_as_much_of_a_view_as_in_images():
    x, draw = torch.rand(20, 1, 16, 32, 40), draw_of(20)
    result = Cutout(3, 0.125, (0.5,)).apply(x.clone(), draw)
    size, side = torch.tensor([16, 32, 40]), torch.tensor([4, 8, 10])  # a quarter: 0.125 ** (2 / 3)
    for row in range(20):
        expected = x[row].clone()
        for hole in range(3):
            low = (draw(Stream.CUTOUT + hole)[row, :3] * size).long() - side // 2
            box = zip(low.clamp(min=0).tolist(), (low + side).tolist(), strict=True)
            expected[(slice(None), *(slice(a, b) for a, b in box))] = 0.5
        assert torch.equal(result[row], expected)


@DIMENSIONS
def test_a_pixel_is_taken_from_the_last_window_that_covers_it(shape):
    """Each window that nothing covers later holds a permutation of the original."""
    operation, draw = LocalShuffle(1.0, 60, 0.3), draw_of(6)
    x = torch.rand(shape)
    result = operation.apply(x.clone(), draw)
    low, side = shuffle_windows(draw, range(6), 60, 0.3, shape[2:])
    assert (side >= 1).all() and (low >= 0).all() and (low + side <= torch.tensor(shape[2:])).all()
    owners = last_windows(low, side, largest_window(0.3, shape[2:]), shape[2:])
    whole = moved = 0
    for row in range(6):
        expected = np.zeros(shape[2:], np.int32)
        for number, (start, sides) in enumerate(zip(low[row].tolist(), side[row].tolist(), strict=True), start=1):
            expected[tuple(slice(s, s + n) for s, n in zip(start, sides, strict=True))] = number
        np.testing.assert_array_equal(owners[row], expected)
        assert torch.equal(result[row][:, expected == 0], x[row][:, expected == 0])
        for number in range(60):
            window = (slice(None), *(slice(s, s + n) for s, n in zip(low[row, number], side[row, number], strict=True)))
            owned = torch.from_numpy(expected[window[1:]] == number + 1)
            before, after = x[row][window].flatten(1), result[row][window][:, owned]
            sources = (after[0].unsqueeze(1) == before[0]).nonzero()[:, 1]
            assert len(sources) == owned.sum() == len(sources.unique())  # without replacement
            assert torch.equal(before[:, sources], after)  # channels stay together
            whole += bool(owned.all())
            moved += int((sources != owned.flatten().nonzero().flatten()).sum())
    assert whole > 20 and moved > 1000


@DIMENSIONS
def test_a_shuffle_depends_on_no_other_image(shape, monkeypatch):
    """Also with so few windows that the largest of all images is smaller than the largest possible, and in parts."""
    x, operation = torch.rand(4, *shape[1:]), LocalShuffle(1.0, 3, 0.3)
    together = operation.apply(x.clone(), draw_of(4))
    for row in range(4):
        assert torch.equal(operation.apply(x[row : row + 1].clone(), draw_of(1, row))[0], together[row])
    monkeypatch.setattr(local_shuffle, "_POSITIONS", 3 * 8 * x[0, 0].numel())
    assert torch.equal(operation.apply(x.clone(), draw_of(4)), together)


@DIMENSIONS
@pytest.mark.parametrize(("windows", "share"), [(60, 0.3), (400, 0.3), (5, 1.0)])
def test_other_devices_shuffle_as_a_cpu_does(shape, windows, share, monkeypatch):
    """Also where hidden windows are left out, and where windows have too many shapes for a table of all."""
    draw, size = draw_of(6), shape[2:]
    windows = shuffle_windows(draw, range(6), windows, share, size)
    seeds = draw.seeds(range(6), Stream.SHUFFLE_PIXELS, torch.device("cpu"))
    largest = largest_window(share, size)
    expected = window_permutations._on_device(*windows, windows[1].prod(-1), largest, size, seeds)
    assert torch.equal(shuffled_positions(*windows, largest, size, seeds), expected)
    for name in ("_CHUNK", "_OVERLAP", "_TABLE"):
        monkeypatch.setattr(window_permutations, name, 1)
    assert torch.equal(shuffled_positions(*windows, largest, size, seeds), expected)


def test_every_permutation_of_a_window_is_equally_likely():
    x = torch.arange(4.0).view(1, 1, 2, 2).repeat(4000, 1, 1, 1)
    result = LocalShuffle(1.0, 40, 1.0).apply(x, draw_of(4000))
    low, side = shuffle_windows(draw_of(4000), range(4000), 40, 1.0, (2, 2))
    last = last_windows(low, side, (2, 2), (2, 2)).flatten(1)
    full = (last == last[:, :1]).all(1)
    orders, counts = result.flatten(1)[full].unique(dim=0, return_counts=True)
    assert len(orders) == 24
    expected = int(full.sum()) / 24
    assert ((counts - expected) ** 2 / expected).sum() < 50  # chi-squared of 23 degrees: beyond this once in 1,000


@DIMENSIONS
@pytest.mark.parametrize(
    "operation",
    [Bezier(0.6), LocalShuffle(0.6, 200), Painting(0.6), Cutout()],
    ids=lambda operation: type(operation).__name__,
)
def test_what_happens_to_an_image_is_its_own_and_happens_as_often_as_asked(operation, shape):
    x = torch.rand(120, *shape[1:])
    together = operation.apply(x.clone(), draw_of(120))
    assert torch.equal(operation.apply(x[40:44].clone(), draw_of(4, start=40)), together[40:44])
    changed = (together != x).flatten(1).any(1).float().mean().item()
    assert abs(changed - (1.0 if isinstance(operation, Cutout) else 0.6)) < 0.15
    assert together.min() >= 0 and together.max() <= 1
    layout = torch.channels_last if x.ndim == 4 else torch.channels_last_3d
    torch.testing.assert_close(operation.apply(x.clone(memory_format=layout), draw_of(120)), together)
