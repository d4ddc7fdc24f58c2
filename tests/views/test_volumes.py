"""Views of volumes: crops, flips and quarter turns against tensor operations, rotations against scipy."""

import math

import numpy as np
import pytest
import scipy.ndimage
import torch
from scipy import stats

from densepath.core.affine import bounds, compose
from densepath.core.resampling import sample
from densepath.sources.batch import ImageBatch
from densepath.sources.pixel_source import PixelSpec
from densepath.views.crops import Crop, Window
from densepath.views.declarations import Center, RandomView
from densepath.views.geometry import crop_maps, pose_maps, quarter_turns, window_maps
from densepath.views.maker import ViewMaker
from densepath.views.random_streams import Draw, Stream

SPEC = PixelSpec(3, 1, (0.0, 1.0), (0.0,), (1.0,))
WHOLE = {"scale": (1.0, 1.0), "ratio": (1.0, 1.0)}


def draw_of(count: int) -> Draw:
    return Draw(0, 0, torch.arange(count), torch.zeros(count, dtype=torch.int64))


def test_flips_and_quarter_turns_are_those_of_tensors():
    volumes = torch.rand(40, 12, 16, 16, 1)
    batch = ImageBatch(volumes, torch.tensor([[12, 16, 16]] * 40), torch.arange(40))
    crop = Crop(**WHOLE, flip=(0.5, 0.5, 0.5), quarter_turns=True)
    made = ViewMaker({"a": RandomView(crop)}, (12, 16, 16), 0, SPEC)(batch)["a"]
    numbers = draw_of(40)
    kinds = set()
    for row, volume in enumerate(volumes.movedim(-1, 1)):
        flips = [*(numbers(Stream.FLIP)[row, :2] < 0.5).tolist(), bool(numbers(Stream.TURN_3D)[row, 0] < 0.5)]
        turns = int(4 * numbers(Stream.FLIP)[row, 2])
        kinds.add((*flips, turns))
        expected = torch.rot90(volume.flip([-1 - axis for axis in range(3) if flips[axis]]), turns, (-2, -1))
        torch.testing.assert_close(made.pixels[row], expected)
    assert len(kinds) > 20


def test_crops_of_whole_voxels_are_slices():
    volume = torch.rand(1, 2, 10, 12, 14)
    low, high = torch.tensor([2, 3, 5]), torch.tensor([8, 11, 12])  # z, y, x
    size = torch.tensor([10, 12, 14])
    sides = (high - low).flip(0) / size.flip(0)
    center = ((high + low) / size - 1).flip(0)
    maps = torch.cat((torch.diag(sides), center.unsqueeze(1)), 1).unsqueeze(0)
    torch.testing.assert_close(sample(volume, maps, (6, 8, 7)), volume[:, :, 2:8, 3:11, 5:12])


def test_crops_have_the_shares_and_ratios_that_were_asked_for():
    count, sizes = 4000, (60, 100, 120)
    maps = crop_maps(
        Crop(scale=(0.1, 0.4), ratio=(0.8, 1.25), flip=()), torch.tensor([sizes] * count), (32, 64, 64), draw_of(count)
    )
    low, high = bounds(maps)
    assert low.min() >= -1 - 1e-6 and high.max() <= 1 + 1e-6
    share = ((high - low) / 2).prod(1)
    assert stats.kstest(((share - 0.1) / 0.3).numpy(), "uniform").pvalue > 1e-3
    sides = (high - low) / 2 * torch.tensor(sizes).flip(0) / torch.tensor([64, 64, 32])
    ratios = sides.unsqueeze(1) / sides.unsqueeze(2)
    assert ratios.max() < 1.25 + 1e-4 and ratios.max() > 1.2
    room = 1 - (high - low) / 2
    for axis in range(3):
        assert stats.kstest(((low[:, axis] + 1) / 2 / room[:, axis]).numpy(), "uniform").pvalue > 1e-3


@pytest.mark.parametrize("depth", [14, 16, 20])
@pytest.mark.parametrize("axes", ["xy", "all"])
def test_a_rotated_window_is_not_shrunk_because_a_volume_is_thinner(depth, axes):
    """Along the thin axis it reaches as far as without rotation; along the others it stays inside."""
    sizes, draw = torch.tensor((depth, 64, 64)).expand(50, -1), draw_of(50)
    plain = window_maps(sizes, (32, 32, 32), draw)
    maps = pose_maps(Window(flip=(), rotation=10.0, rotation_axes=axes), plain, sizes, draw)
    assert (torch.linalg.det(maps[..., :-1]) / torch.linalg.det(plain[..., :-1]) > 0.3).all()
    before, after = (each[..., :-1].abs().sum(-1) for each in (plain, maps))
    assert (after[:, 2] <= before[:, 2] + 1e-5).all() and (after + maps[..., -1].abs() <= 1 + 1e-5)[:, :2].all()


@pytest.mark.parametrize("axes", ["xy", "all"])
def test_rotations_are_rigid_in_millimeters(axes):
    """Against scipy in float64, on voxels of 1 x 1.5 x 4 mm: the same rigid turn of the same points."""
    sizes, spacing = torch.tensor([[16, 40, 48]] * 4), torch.tensor([[4.0, 1.5, 1.0]] * 4)
    z, y, x = np.meshgrid(*(np.arange(n) for n in (16, 40, 48)), indexing="ij")
    volume = np.sin(x / 5) + np.cos(y / 4) + 0.5 * np.sin(z / 3)
    crop = Crop(scale=(0.2, 0.2), ratio=(1.0, 1.0), flip=(), rotation=25.0, rotation_axes=axes)
    draw, size = draw_of(4), (24, 40, 40)
    maps = crop_maps(crop, sizes, size, draw, spacing)
    pixels = sample(torch.tensor(volume)[None, None].expand(4, -1, -1, -1, -1), maps, size)
    upright = crop_maps(Crop(scale=(0.2, 0.2), ratio=(1.0, 1.0), flip=()), sizes, size, draw, spacing)
    half = sizes.flip(-1) * spacing.flip(-1) / 2
    for row in range(4):
        # From the view's index (z, y, x) to the volume's, as scipy wants it.
        scale = sizes[row].numpy() / 2
        linear = maps[row, :, :3].double().numpy()[::-1, ::-1] * scale[:, None] * 2 / np.array(size)[None]
        center = maps[row, :, 3].double().numpy()[::-1] * scale + scale - 0.5
        offset = center - linear @ ((np.array(size) - 1) / 2)
        expected = scipy.ndimage.affine_transform(volume, linear, offset, size, order=1, mode="nearest")
        steps = np.linalg.norm(linear, axis=0)
        assert steps.max() < 1  # nothing is averaged
        np.testing.assert_allclose(pixels[row, 0], expected, atol=1e-4)
        # In mm the map is the upright one's after a rotation, up to a common factor that keeps it inside.
        turned, plain = (each[row, :, :3].double() * half[row].double()[:, None] for each in (maps, upright))
        rotation = turned @ torch.linalg.inv(plain)
        rotation = rotation / torch.linalg.det(rotation) ** (1 / 3)
        torch.testing.assert_close(rotation @ rotation.T, torch.eye(3).double(), atol=1e-5, rtol=0)
        if axes == "xy":
            torch.testing.assert_close(rotation[2], torch.tensor([0.0, 0, 1]).double(), atol=1e-6, rtol=0)
            angle = math.degrees(math.atan2(rotation[1, 0], rotation[0, 0]))
            assert angle == pytest.approx(25 * (2 * float(draw(Stream.FLIP)[row, 3]) - 1), abs=1e-3)


@pytest.mark.parametrize(("rotation", "axes"), [(30.0, "xy"), (30.0, "all")])
def test_turned_views_equal_grid_sample(rotation, axes):
    """In float64, without minification."""
    volumes = torch.rand(5, 2, 20, 24, 28, dtype=torch.float64)
    sizes = torch.tensor([[20, 24, 28]] * 5)
    crop = Crop(scale=(0.3, 0.5), rotation=rotation, rotation_axes=axes, quarter_turns=True, flip=(0.5, 0.5, 0.5))
    maps = crop_maps(crop, sizes, (32, 32, 32), draw_of(5)).double()
    grid = torch.nn.functional.affine_grid(maps, [5, 2, 32, 32, 32], align_corners=False)
    expected = torch.nn.functional.grid_sample(volumes, grid, padding_mode="border", align_corners=False)
    torch.testing.assert_close(sample(volumes, maps, (32, 32, 32)), expected)


def test_views_lie_inside_their_volumes_however_they_turn():
    crop = Crop(scale=(0.01, 1.0), rotation=180.0, rotation_axes="all", quarter_turns=True)
    sizes, spacing = torch.randint(20, 200, (1000, 3)), 0.5 + 3 * torch.rand(1000, 3)
    low, high = bounds(crop_maps(crop, sizes, (16, 16, 16), draw_of(1000), spacing))
    assert low.min() > -1 - 1e-5 and high.max() < 1 + 1e-5


def test_quarter_turns_compose_to_the_identity():
    for d in (2, 3):
        turn = quarter_turns(torch.tensor([1]), d)
        four = compose(compose(turn, turn), compose(turn, turn))
        assert torch.equal(four, torch.eye(d, d + 1).unsqueeze(0))


def test_the_middle_has_the_aspect_ratio_of_the_view():
    volume = torch.rand(1, 40, 60, 80, 1)
    batch = ImageBatch(volume, torch.tensor([[40, 60, 80]]), torch.zeros(1, dtype=torch.int64))
    made = ViewMaker({"center": Center(share=1.0)}, (20, 40, 40), 0, SPEC)(batch)["center"]
    low, high = ((edge.flip(-1) + 1) / 2 * torch.tensor([40, 60, 80]) for edge in bounds(made.map))
    torch.testing.assert_close(low, torch.tensor([[5.0, 0, 10]]))
    torch.testing.assert_close(high, torch.tensor([[35.0, 60, 70]]))


def test_channels_last_of_volumes_changes_nothing_but_the_layout():
    batch = ImageBatch(torch.rand(3, 12, 14, 16, 2), torch.tensor([[12, 14, 16]] * 3), torch.arange(3))
    spec = PixelSpec(3, 2, (0.0, 1.0), (0.1, 0.2), (1.0, 2.0))
    plain = ViewMaker({"a": RandomView()}, 8, 0, spec)(batch)["a"].pixels
    last = ViewMaker({"a": RandomView()}, 8, 0, spec, torch.channels_last)(batch)["a"].pixels
    assert last.is_contiguous(memory_format=torch.channels_last_3d)
    assert torch.equal(plain, last)


def test_a_pose_without_chance_changes_nothing():
    maps = torch.rand(4, 3, 4)
    assert torch.equal(pose_maps(Crop(flip=()), maps, torch.full((4, 3), 9), draw_of(4)), maps)
