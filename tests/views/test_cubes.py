"""Operations on the cubes of a view, elastic deformation and shared places, against plain loops."""

import itertools
import math
from dataclasses import replace

import pytest
import scipy.ndimage
import torch

from densepath.core.affine import bounds
from densepath.methods import SemanticGenesis
from densepath.sources.pixel_source import PixelSpec
from densepath.views.crops import Pattern
from densepath.views.cubes import PatchJitter, ShuffledCubes, divide, join, rotations
from densepath.views.declarations import RandomView
from densepath.views.elastic import Elastic, OneOf, displacements
from densepath.views.maker import ViewMaker
from densepath.views.patterns import pattern_numbers
from densepath.views.random_streams import Draw, Stream

SHAPES = [(5, 2, 12, 8), (5, 1, 8, 12, 8)]
DIMENSIONS = pytest.mark.parametrize("shape", SHAPES, ids=["2D", "3D"])


def draw_of(count: int, epoch: int = 1) -> Draw:
    return Draw(3, epoch, torch.arange(count), torch.zeros(count, dtype=torch.int64))


def cubes_of(x: torch.Tensor, side: int) -> list[torch.Tensor]:
    """The cubes of one view (C, *size), by a loop."""
    starts = itertools.product(*(range(0, n, side) for n in x.shape[1:]))
    return [x[(slice(None), *(slice(s, s + side) for s in start))] for start in starts]


@DIMENSIONS
@pytest.mark.parametrize("rotation", ["none", "xy", "all"])
def test_cubes_change_places_and_are_turned(shape, rotation):
    x, d, side = torch.rand(shape), len(shape) - 2, 4
    torch.testing.assert_close(join(divide(x, side), x.shape[2:], side), x)
    made = ShuffledCubes(side, rotation=rotation).apply(x.clone(), draw_of(5))
    planes = {"none": [], "xy": [(-2, -1)], "all": list(itertools.combinations(range(-d, 0), 2))}[rotation]
    assert len(rotations(side, d, rotation)) == 1 + 3 * len(planes)
    moved, turned = 0, set()
    for view, result in zip(x, made, strict=True):
        before, after = cubes_of(view, side), cubes_of(result, side)
        used = []
        for place, cube in enumerate(after):
            variants = [
                (number, plane, k)
                for number, each in enumerate(before)
                for plane, k in [(None, 0), *((p, k) for p in planes for k in (1, 2, 3))]
                if torch.equal(cube, each if plane is None else torch.rot90(each, k, plane))
            ]
            assert len(variants) == 1
            number, plane, k = variants[0]
            used.append(number)
            moved += number != place
            turned.add((plane, k))
        assert sorted(used) == list(range(len(before)))
    assert moved > 10 and (len(turned) > 3 * len(planes) / 2 or rotation == "none")
    still = ShuffledCubes(side, permute=False, rotation="none").apply(x.clone(), draw_of(5))
    assert torch.equal(still, x)


@DIMENSIONS
def test_patches_are_flipped_cropped_and_padded(shape):
    x, d, side = torch.rand(shape) + 1, len(shape) - 2, 4
    made = PatchJitter(side, share=0.75).apply(x.clone(), draw_of(5))
    seen = set()
    for view, result in zip(x, made, strict=True):
        for before, after in zip(cubes_of(view, side), cubes_of(result, side), strict=True):
            found = []
            for flip, low in itertools.product((False, True), itertools.product((0, 1), repeat=d)):
                cube = before.flip(1) if flip else before
                expected = torch.zeros_like(before)
                inner = (slice(None), *[slice(0, 3)] * d)  # (4 - 3) // 2 before
                expected[inner] = cube[(slice(None), *(slice(start, start + 3) for start in low))]
                if torch.equal(after, expected):
                    found.append((flip, low))
            assert len(found) == 1
            seen |= {*found}
    assert len(seen) > 2**d


@DIMENSIONS
def test_an_elastic_deformation_has_its_displacement(shape):
    size = (64, 64) if len(shape) == 4 else (24, 40, 40)
    draw = draw_of(30)
    shift = displacements(draw, list(range(30)), size, 0.05, 0.08, torch.device("cpu"))
    noise = draw.pixels([0], shift[0].numel(), shift.device, Stream.ELASTIC_PIXELS).view(shift[0].shape) * 2 - 1
    blurred = scipy.ndimage.gaussian_filter(noise.double(), (0, *[0.08 * size[-1]] * len(size)), mode="constant")
    factor = 0.05 * size[-1] * 3**0.5 * (4 * math.pi * (0.08 * size[-1]) ** 2) ** (len(size) / 4)
    torch.testing.assert_close(shift[0].double(), torch.from_numpy(blurred * factor), atol=0.01, rtol=0)
    inner = shift[(..., *(slice(n // 4, -n // 4) for n in size))]
    assert inner.std().item() == pytest.approx(0.05 * size[-1], rel=0.15)
    x = torch.rand(30, 1, *size)
    torch.testing.assert_close(Elastic(displacement=0.0).apply(x.clone(), draw), x, atol=1e-4, rtol=0)
    ramps = torch.stack(torch.meshgrid(*(torch.arange(float(n)) for n in size), indexing="ij")).expand(
        30, -1, *[-1] * len(size)
    )
    moved = Elastic(displacement=0.05, sigma=0.08).apply(ramps.clone(), draw)
    within = (..., *(slice(n // 4, -n // 4) for n in size))
    for axis, along in ((-1, 0), (-2, 1)):  # a ramp shows where each pixel came from
        torch.testing.assert_close((moved - ramps)[:, axis][within], shift[:, along][within], atol=2e-3, rtol=0)
    if len(size) == 3:
        torch.testing.assert_close(moved[:, 0], ramps[:, 0], atol=1e-3, rtol=0)


def test_one_operation_is_chosen_for_each_view():
    class Plus(Elastic):
        def apply(self, x, draw):
            return x + 4 * self.displacement

    which = OneOf((Plus(displacement=0.25), Plus(displacement=0.5), Plus(displacement=0.75))).apply(
        torch.zeros(60, 1, 2, 2), draw_of(60)
    )[:, 0, 0, 0]
    assert {int(n) for n in which.unique()} == {1, 2, 3}
    assert all(12 <= int((which == n).sum()) <= 28 for n in (1, 2, 3))


def test_places_are_the_same_share_of_all_images():
    """In images of other sizes, the windows of a place have the same center relative to the room they have."""
    spec = PixelSpec(3, 1, mean=(0.0,), std=(1.0,))
    views = {"image": RandomView(Pattern(count=3, whole_epochs=2, flip=(0.0,)))}
    maker, count = ViewMaker(views, (8, 16, 16), 0, spec), 300
    sizes = torch.tensor([[30, 60, 90], [12, 20, 40], [6, 16, 70]]).repeat(count // 3, 1)
    index = torch.arange(count)
    low, high = bounds(maker.draw(index, sizes, epoch=1.5).views["image"].map)
    shown = (torch.tensor([64.0, 64.0, 32.0]) / sizes.flip(-1)).clamp(max=1)  # at most four times the view
    torch.testing.assert_close(high - low, 2 * shown)
    centers = (low + high)[::3, 0] / 2 / (1 - shown[0, 0])  # of the largest images along x, relative to their room
    assert centers.min() < -0.9 and centers.max() > 0.9 and abs(float(centers.mean())) < 0.2
    assert low.min() >= -1 - 1e-6 and high.max() <= 1 + 1e-6
    large = torch.tensor([[300, 512, 60]])  # of which features are those of the middle
    middle = replace(SemanticGenesis.feature_view, crop=replace(SemanticGenesis.feature_view.crop, count=3))
    shown = ViewMaker({"image": middle}, (8, 16, 16), 0, spec).draw(torch.tensor([0]), large).views["image"].map
    torch.testing.assert_close(shown[0, [0, 1, 2], [0, 1, 2]], torch.tensor([1.0, 64 / 512, 32 / 300]))
    torch.testing.assert_close(shown[0, :, 3], torch.zeros(3))
    draw = Draw(0, 2, index, torch.zeros_like(index))
    places = pattern_numbers(3, draw)
    low, high = (
        (edge.flip(-1).double() + 1) / 2 * sizes
        for edge in bounds(maker.draw(index, sizes, epoch=2.0).views["image"].map)
    )
    assert (low >= -1e-3).all() and (high <= sizes + 1e-3).all()
    sides, view = high - low, torch.minimum(torch.tensor([8, 16, 16]), sizes)
    plain = draw(Stream.PATTERN)[:, 1] >= 2 / 3
    torch.testing.assert_close(sides[plain], view[plain].double(), atol=1e-3, rtol=0)
    assert 0.2 < plain.float().mean() < 0.46
    assert (sides[~plain, 0] - view[~plain, 0]).abs().max() < 1e-3  # not along z
    ratio = sides[~plain, 2] / 16
    assert 0.78 < ratio.min() < 0.85 and 1.19 < ratio.max() < 1.26
    for place in range(3):
        rows = plain & (places == place) & (sizes > view).all(1)
        shares = (low / (sizes - view).clamp(min=1))[rows]
        assert len(shares) > 5 and (shares - shares[0]).abs().max() < 1e-3
