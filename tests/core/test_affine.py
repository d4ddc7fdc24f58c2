"""Affine maps and warps against explicit loops, torchvision and kornia."""

import itertools
import math

import kornia
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as TF

from densepath.core import affine
from densepath.core.resampling import resample, sample, sample_nearest

torch.manual_seed(0)
IDENTITY = affine.identity(1)


def box(left: float, top: float, right: float, bottom: float, width: float, height: float) -> torch.Tensor:
    """The map of a crop given by its edges in pixels."""
    low = torch.tensor([[2 * left / width - 1, 2 * top / height - 1]], dtype=torch.float32)
    high = torch.tensor([[2 * right / width - 1, 2 * bottom / height - 1]], dtype=torch.float32)
    return affine.from_box(low, high)


def random_maps(count: int, d: int = 2) -> torch.Tensor:
    return torch.cat(
        (torch.eye(d).expand(count, -1, -1) + 0.3 * torch.randn(count, d, d), torch.randn(count, d, 1)), -1
    )


@pytest.mark.parametrize("d", [2, 3])
def test_compose_and_invert_follow_the_points(d):
    a, b, points = random_maps(5, d), random_maps(5, d), torch.randn(5, 7, d)
    torch.testing.assert_close(affine.apply(affine.compose(a, b), points), affine.apply(a, affine.apply(b, points)))
    torch.testing.assert_close(affine.compose(affine.invert(a), a), affine.identity(5, d), atol=1e-4, rtol=1e-4)


def test_union_is_the_smallest_rectangle():
    maps = affine.union(box(10, 20, 60, 50, 100, 100), box(40, 5, 70, 45, 100, 100))
    torch.testing.assert_close(maps, box(10, 5, 70, 50, 100, 100))


def test_union_covers_rotated_views():
    a, b = random_maps(8), random_maps(8)
    corners = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=2))).expand(8, -1, -1)
    points = torch.cat((affine.apply(a, corners), affine.apply(b, corners)), 1)
    low, high = affine.bounds(affine.union(a, b))
    torch.testing.assert_close(low, points.amin(1))
    torch.testing.assert_close(high, points.amax(1))


def test_crops_flips_and_quarter_turns_copy_pixels():
    x = torch.rand(1, 3, 12, 12)
    crop, valid = affine.warp(x, IDENTITY, box(2, 3, 10, 8, 12, 12), (5, 8))
    torch.testing.assert_close(crop, x[..., 3:8, 2:10])
    assert valid.all()
    flip = torch.tensor([[[-1.0, 0, 0], [0, 1, 0]]])
    torch.testing.assert_close(affine.warp(x, IDENTITY, flip, (12, 12))[0], x.flip(-1))
    for turns in range(1, 4):
        turned, valid = affine.warp(x, IDENTITY, rotation(90 * turns), (12, 12))
        torch.testing.assert_close(turned, torch.rot90(x, turns, (-2, -1)))
        assert valid.all()


def test_quarter_turns_of_a_batch_with_crops_and_rotations():
    x = torch.rand(3, 2, 16, 16)
    maps = torch.cat((rotation(90), rotation(23), box(4, 4, 12, 12, 16, 16)))
    together, valid = resample(x, maps, (8, 8))
    for i in range(3):
        alone, alone_valid = resample(x[i : i + 1], maps[i : i + 1], (8, 8))
        torch.testing.assert_close(together[i], alone[0])
        assert torch.equal(valid[i], alone_valid[0])


def test_three_dimensions():
    x = torch.rand(1, 2, 6, 8, 10)
    low, high = torch.tensor([[0.0, -0.5, -1.0]]), torch.tensor([[1.0, 0.5, 0.0]])
    crop, valid = resample(x, affine.from_box(low, high), (3, 4, 5))
    torch.testing.assert_close(crop, x[:, :, 0:3, 2:6, 5:10])
    assert valid.all()
    swap = torch.tensor([[[0.0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0]]])  # x takes y's place
    torch.testing.assert_close(resample(x, swap, (6, 10, 8))[0], x.transpose(-1, -2))


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(9, 7), (24, 40), (64, 64)])
def test_resizing_equals_torchvision_with_antialias(mode, size):
    x = torch.rand(2, 3, 37, 51)
    ours, _ = resample(x, affine.identity(2), size, mode=mode)
    theirs = TF.resize(x, list(size), InterpolationMode(mode), antialias=True)
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)


def test_fractional_crop_equals_kornia():
    x = torch.rand(1, 3, 40, 40)
    # kornia's boxes name the centers of corner pixels; a 10 px box is then sampled without minification.
    left, top = 7.3, 11.6
    corners = torch.tensor([[[left, top], [left + 9, top], [left + 9, top + 9], [left, top + 9]]])
    theirs = kornia.geometry.crop_and_resize(x, corners, (10, 10), align_corners=True)
    ours, _ = affine.warp(x, IDENTITY, box(left + 0.0, top + 0.0, left + 10, top + 10, 40, 40), (10, 10))
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def rotation(degrees: float) -> torch.Tensor:
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return torch.tensor([[[cos, -sin, 0], [sin, cos, 0]]])


def test_rotation_equals_kornia():
    x = torch.rand(1, 1, 64, 64)
    theirs = kornia.geometry.rotate(x, torch.tensor([30.0]), align_corners=False)
    ours, valid = resample(x, rotation(30), (64, 64))
    inside = F.avg_pool2d(valid[:, None].float(), 3, 1, 1)[0, 0] > 0.99  # both blend at the rim, in their own ways
    torch.testing.assert_close(ours[0, 0][inside], theirs[0, 0][inside], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("angle", [0, 17])
def test_minification_does_not_alias(angle):
    stripes = (torch.arange(128) % 2).float().expand(1, 1, 128, 128)
    maps = 0.7 * rotation(angle)
    small, _ = resample(stripes, maps, (16, 16))
    assert (small - 0.5).abs().max() < 0.13  # point samples would be off by 0.5


@pytest.mark.parametrize("mode", ["area", "bilinear"])
def test_how_finely_a_turned_image_is_sampled_is_its_own(mode):
    """Beside one that shrinks four times, one that does not stays as it is by itself."""
    x = torch.rand(3, 2, 64, 64)
    maps = torch.cat([scale * rotation(33) for scale in (0.1, 0.3, 0.7)])
    together = sample(x, maps, (8, 8), mode=mode)
    alone = torch.cat([sample(x[i : i + 1], maps[i : i + 1], (8, 8), mode=mode) for i in range(3)])
    torch.testing.assert_close(together, alone)
    coarse = F.grid_sample(x[:1], F.affine_grid(maps[:1], [1, 2, 8, 8], align_corners=False), align_corners=False)
    if mode == "bilinear":
        torch.testing.assert_close(together[:1], coarse, atol=1e-5, rtol=1e-4)


def loop_shares(labels: np.ndarray, maps: np.ndarray, size: tuple[int, int], count: int) -> np.ndarray:
    """Area shares of an upright map by explicit intersections of rectangles, float64."""
    height, width = labels.shape
    shares = np.zeros((count, *size))
    for i, j in np.ndindex(*size):
        x = sorted((maps[0, 0] * (2 * (j + e) / size[1] - 1) + maps[0, 2] + 1) / 2 * width for e in (0, 1))
        y = sorted((maps[1, 1] * (2 * (i + e) / size[0] - 1) + maps[1, 2] + 1) / 2 * height for e in (0, 1))
        for r, c in np.ndindex(height, width):
            across = max(0.0, min(x[1], c + 1) - max(x[0], c))
            down = max(0.0, min(y[1], r + 1) - max(y[0], r))
            shares[labels[r, c], i, j] += across * down / ((x[1] - x[0]) * (y[1] - y[0]))
    return shares


def test_label_shares_are_exact_areas():
    generator = np.random.default_rng(3)
    for _ in range(5):
        labels = generator.integers(0, 4, (9, 11))
        reference = box(1.0, 2.0, 30.0, 27.0, 32, 32)
        view = box(*(generator.uniform(0, 8, 2) + 3), *(generator.uniform(15, 20, 2) + 7), 32, 32)
        view[:, 0, 0] *= generator.choice([-1, 1])
        shares = affine.label_shares(torch.tensor(labels)[None], reference, view, (7, 7), 4)[0]
        relative = affine.between(reference, view)[0].double().numpy()
        np.testing.assert_allclose(shares, loop_shares(labels, relative, (7, 7), 4), atol=1e-5)
        np.testing.assert_allclose(shares.sum(0), 1, atol=1e-5)


def test_labels_of_rotated_views_have_the_area_of_their_shapes():
    labels = torch.zeros(1, 64, 64, dtype=torch.int64)
    labels[:, :, 32:] = 1
    shares = affine.label_shares(labels, IDENTITY, 0.5 * rotation(45), (8, 8), 2)[0]
    torch.testing.assert_close(shares.sum(0), torch.ones(8, 8))
    # The border runs along a diagonal: positions on it are half and half, the corners off it pure.
    diagonal = torch.stack([shares[0].diagonal(), shares[0].flip(1).diagonal()])
    assert ((diagonal - 0.5).abs().amax(1) < 0.1).any()
    assert shares[0].amax() == 1 and shares[0].amin() == 0


def test_identity_view_keeps_labels_and_flip_mirrors_them():
    labels = torch.randint(0, 5, (1, 7, 7))
    assert torch.equal(affine.warp_labels(labels, IDENTITY, IDENTITY, (7, 7), 5)[0], labels)
    flip = torch.tensor([[[-1.0, 0, 0], [0, 1, 0]]])
    assert torch.equal(affine.warp_labels(labels, IDENTITY, flip, (7, 7), 5)[0], labels.flip(-1))


def test_ties_take_the_smallest_label():
    labels = torch.tensor([[[2, 1], [1, 2]]])
    assert affine.warp_labels(labels, IDENTITY, IDENTITY, (1, 1), 3)[0].item() == 1
    labels = torch.tensor([[[900] * 501 + [3] * 499]])  # no tie, whatever the labels are
    assert affine.warp_labels(labels, IDENTITY, IDENTITY, (1, 1), 901)[0].item() == 900


def test_outside_is_invalid():
    labels = torch.ones(1, 4, 4, dtype=torch.int64)
    beyond = box(4, 0, 12, 8, 8, 8)
    on_view, valid = affine.warp_labels(labels, IDENTITY, beyond, (4, 4), 2)
    assert torch.equal(valid[0], torch.tensor([True, True, False, False]).expand(4, 4))
    assert torch.equal(on_view[0], torch.tensor([1, 1, -1, -1]).expand(4, 4))
    pixels, valid = affine.warp(torch.ones(1, 1, 8, 8), IDENTITY, beyond, (4, 4))
    assert torch.equal(pixels[0, 0] > 0, valid[0])


def test_points_move_with_the_pixels():
    x = torch.zeros(1, 1, 32, 32)
    x[0, 0, 9, 20] = 1
    point = torch.tensor([[[2 * 20.5 / 32 - 1, 2 * 9.5 / 32 - 1]]])
    view = box(6, 4, 26, 24, 32, 32)
    view[:, 0, 0] *= -1
    pixels, _ = affine.warp(x, IDENTITY, view, (20, 20))
    moved, valid = affine.warp_points(point, IDENTITY, view)
    row, column = divmod(int(pixels.flatten().argmax()), 20)
    torch.testing.assert_close(moved[0, 0], torch.tensor([2 * (column + 0.5) / 20 - 1, 2 * (row + 0.5) / 20 - 1]))
    assert valid.all()
    assert not affine.warp_points(torch.tensor([[[-0.99, 0.0]]]), IDENTITY, view)[1].any()


@pytest.mark.parametrize("degrees", [0, 90, 30])
def test_padding_of_a_canvas_is_never_seen(degrees):
    image = torch.rand(1, 1, 20, 24)
    canvas = F.pad(image, (0, 8, 0, 12), value=1e6)
    padded = sample(canvas, rotation(degrees), (16, 16), extent=torch.tensor([[20, 24]]))
    torch.testing.assert_close(padded, sample(image, rotation(degrees), (16, 16)), atol=1e-4, rtol=1e-4)


TURNED = torch.tensor([[[0.6, -0.5, 0.1], [0.5, 0.7, 0.0]], [[0.3, 0.1, 0.4], [-0.1, 0.4, 0.2]]])
UPRIGHT = torch.tensor([[[1.6, 0, 0.3], [0, -0.4, 0.2]], [[0, 0.7, 0.1], [-1.2, 0, 0.3]]])  # also wider than the input


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_gradients_flow_through_samples(mode):
    """Of turned and upright maps at once: against finite differences."""
    maps = torch.cat((TURNED, UPRIGHT))
    x = torch.rand(4, 2, 5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: sample(x, maps, (3, 6), mode=mode), x, fast_mode=True)


def test_places_are_as_exact_under_autocast():
    a, b, points = random_maps(5), random_maps(5), torch.randn(5, 7, 2)
    maps = torch.cat((TURNED, UPRIGHT))
    x, features = torch.rand(4, 3, 32, 32), torch.rand(4, 3, 32, 32).bfloat16()

    def places():
        return [affine.between(a, b), affine.apply(a, points), sample(x, maps, (16, 16))]

    with torch.autocast("cpu", torch.bfloat16):
        mixed, of_features = places(), sample(features, maps, (16, 16))
    for one, other in zip(mixed, places(), strict=True):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(of_features, sample(features.float(), maps, (16, 16)).bfloat16(), atol=0.02, rtol=0)


@pytest.mark.parametrize("maps", [TURNED[:1], torch.cat((TURNED, UPRIGHT))], ids=["one kind", "both"])
def test_places_are_as_exact_in_a_large_map_of_narrow_numbers(maps):
    x = torch.rand(len(maps), 2, 112, 112).bfloat16()
    out, nearest = sample(x, maps, (112, 112)), sample_nearest(x, maps, (112, 112))
    assert out.dtype == nearest.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), sample(x.float(), maps, (112, 112)), atol=0.01, rtol=0)
    assert torch.equal(nearest.float(), sample_nearest(x.float(), maps, (112, 112)))


@pytest.mark.parametrize("d", [2, 3])
def test_nearest_samples_are_the_positions_under_the_centers(d):
    size = (4, 3, 5)[:d]
    maps, x = random_maps(3, d), torch.rand(3, 2, *size)
    out = sample_nearest(x, maps, (6,) * d)
    for image, *place in itertools.product(range(3), *(range(6) for _ in range(d))):
        center = torch.tensor([(2 * p + 1) / 6 - 1 for p in reversed(place)])
        at = affine.apply(maps[image : image + 1], center.view(1, 1, d))[0, 0].flip(0)
        expected = torch.zeros(2)
        if (at.abs() < 1).all():
            expected = x[(image, slice(None), *((at + 1) / 2 * torch.tensor(size)).long().tolist())]
        assert torch.equal(out[(image, slice(None), *place)], expected)
