"""Volumes one by one on the voxels that they need, against the batch as one table and against plain samples."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from densepath.core.boxes import needed_boxes
from densepath.core.resampling import _sample_groups, sample

EXTENT = torch.tensor([[14, 20, 18], [16, 12, 22], [9, 21, 24], [16, 21, 24]])


def aligned_maps(seed: int) -> torch.Tensor:
    """Crops, flips and exchanged axes, some of which reach beyond the volume."""
    generator = torch.Generator().manual_seed(seed)
    maps = torch.zeros(4, 3, 4)
    orders = list(itertools.permutations(range(3)))
    for row in range(4):
        order = orders[int(torch.randint(6, (), generator=generator))]
        for i, j in enumerate(order):
            sign = 1 if torch.rand((), generator=generator) < 0.5 else -1
            maps[row, i, j] = sign * (0.1 + 0.9 * torch.rand((), generator=generator))
        maps[row, :, 3] = torch.rand(3, generator=generator) - 0.5
    return maps


def rotation(axis: int, degrees: float) -> torch.Tensor:
    angle = torch.deg2rad(torch.tensor(degrees))
    turn, (i, j) = torch.eye(3), [other for other in range(3) if other != axis]
    turn[i, i], turn[j, j], turn[i, j], turn[j, i] = angle.cos(), angle.cos(), -angle.sin(), angle.sin()
    return torch.cat((turn, torch.zeros(3, 1)), 1).unsqueeze(0)


@pytest.mark.parametrize("mode", ["area", "bilinear", "bicubic"])
@pytest.mark.parametrize("seed", range(4))
def test_crops_equal_those_of_one_table_for_the_batch(mode, seed):
    x, maps = torch.rand(4, 2, 16, 21, 24), aligned_maps(seed)
    for size in ((5, 8, 7), (20, 6, 30)):
        ours = sample(x, maps.double(), size, mode=mode, extent=EXTENT)
        theirs = _sample_groups(x, maps.double(), size, mode, EXTENT, None)
        inside = sample(torch.ones_like(x), maps.double(), size, mode=mode, extent=EXTENT) > 0
        torch.testing.assert_close(ours, theirs * inside, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["upright", "in the plane", "oblique"])
def test_samples_are_as_exact_under_autocast(kind):
    turns = {"in the plane": rotation(2, 10.0), "oblique": rotation(0, 10.0)}
    x, maps = torch.rand(1, 2, 16, 21, 24), 0.9 * turns[kind] if kind in turns else aligned_maps(0)[:1]
    with torch.autocast("cpu", torch.bfloat16):
        mixed = sample(x, maps, (5, 8, 7))
    torch.testing.assert_close(mixed, sample(x, maps, (5, 8, 7)))


@pytest.mark.parametrize("mode", ["area", "bilinear", "bicubic"])
@pytest.mark.parametrize("axis", range(3))
def test_rotated_volumes_are_the_same_on_other_devices(mode, axis):
    """They are one table there: nothing shrinks, some axes do, all do, and parts lie outside of the volume."""
    x = torch.rand(4, 2, 16, 21, 24)
    maps = torch.cat([s * rotation(axis, angle) for s, angle in ((0.2, 10.0), (0.5, 80.0), (0.8, 3.0), (1.1, -40.0))])
    for size in ((5, 8, 7), (20, 6, 30)):
        ours = sample(x, maps.double(), size, mode=mode, extent=EXTENT)
        theirs = _sample_groups(x, maps.double(), size, mode, EXTENT, None)
        within = sample(torch.ones_like(x), maps.double(), size, mode=mode, extent=EXTENT) > 0
        torch.testing.assert_close(ours, theirs * within, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.int16, torch.uint8, torch.float64])
def test_several_maps_sample_one_volume_of_any_type(dtype):
    x, maps = (200 * torch.rand(2, 1, 16, 21, 24)).to(dtype), aligned_maps(1)
    rows, extent = torch.tensor([1, 0, 1, 1]), torch.tensor([16, 21, 24]).expand(4, -1)
    ours = sample(x, maps, (6, 7, 8), rows=rows, extent=extent)
    theirs = torch.cat([sample(x[row : row + 1], maps[i : i + 1], (6, 7, 8)) for i, row in enumerate(rows.tolist())])
    assert torch.equal(ours, theirs)
    assert ours.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_turned_volumes_equal_plain_samples(axis):
    """About z as images whose channels are slices, about the others as volumes; z of the first is enlarged."""
    x = torch.rand(1, 2, 12, 20, 20, dtype=torch.float64)
    maps = 0.4 * rotation(axis, 25.0).double()
    ours = sample(x, maps, (12, 24, 24))
    grid = F.affine_grid(maps, [1, 2, 12, 24, 24], align_corners=False)
    theirs = F.grid_sample(x, grid, padding_mode="border", align_corners=False)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("axis", [0, 2])
def test_turned_volumes_do_not_alias_and_keep_ramps(axis):
    z, y, x = torch.meshgrid(*[torch.arange(64.0)] * 3, indexing="ij")
    checks = ((x + y + z) % 2).view(1, 1, 64, 64, 64)
    ramp = (x + 2 * y + 3 * z).view(1, 1, 64, 64, 64)
    maps = 0.5 * rotation(axis, 17.0)
    assert (sample(checks, maps, (8, 12, 16)) - 0.5).abs().max() < 0.05
    grid = F.affine_grid(maps, [1, 1, 8, 12, 16], align_corners=False)
    there = F.grid_sample(ramp, grid, padding_mode="border", align_corners=False)
    torch.testing.assert_close(sample(ramp, maps, (8, 12, 16)), there, atol=0.3, rtol=0)


def test_gradients_flow_through_samples_of_volumes():
    maps = torch.cat((aligned_maps(0)[:2], 0.5 * rotation(2, 20.0), 0.5 * rotation(0, 20.0)))
    x = torch.rand(4, 1, 5, 4, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: sample(x, maps, (3, 2, 4)), x, fast_mode=True)


@pytest.mark.parametrize("mode", ["area", "bilinear", "bicubic"])
def test_what_lies_outside_the_needed_box_changes_nothing(mode):
    x = torch.rand(8, 1, 30, 30, 30)
    maps = torch.cat(
        [0.3 * rotation(axis, 30.0) for axis in range(3)] + [0.4 * aligned_maps(3), 0.2 * rotation(1, 0.0)]
    )
    extent = torch.tensor([30, 30, 30]).expand(8, -1)
    boxes = needed_boxes(maps, (7, 9, 8), mode, extent)
    other = torch.full_like(x, 1e6)
    for row, ((a, b, c), (d, e, f)) in enumerate(boxes.tolist()):
        other[row, :, a:d, b:e, c:f] = x[row, :, a:d, b:e, c:f]
    plain = _sample_groups(x, maps.double(), (7, 9, 8), mode, extent, None)
    torch.testing.assert_close(_sample_groups(other, maps.double(), (7, 9, 8), mode, extent, None), plain)
    assert ((boxes[:, 1] - boxes[:, 0]) < 30).any()
