"""What is resized before a map rotates it."""

import math

import pytest
import torch

from densepath.core.boxes import needed_boxes
from densepath.core.resampling import sample, sample_finely
from densepath.core.shrinking import shrink


def rotations(degrees: list[float], scales: list[float]) -> torch.Tensor:
    angle, scale = torch.deg2rad(torch.tensor(degrees)), torch.tensor(scales)
    maps = torch.zeros(len(degrees), 2, 3)
    maps[:, 0, 0] = maps[:, 1, 1] = scale * torch.cos(angle)
    maps[:, 0, 1], maps[:, 1, 0] = -scale * torch.sin(angle), scale * torch.sin(angle)
    maps[:, :, 2] = 0.1
    return maps


def test_a_batch_on_another_device_and_images_one_by_one_are_the_same():
    x, size = torch.rand(4, 3, 96, 80), (16, 12)
    extent = torch.tensor([[96, 80], [70, 80], [96, 64], [50, 50]])
    maps = rotations([7.0, -20.0, 100.0, 45.0], [0.8, 0.3, 0.6, 0.1])  # shrinks by up to 5, not at all, ...
    low, high = needed_boxes(maps, size, "bilinear", extent).unbind(1)
    values, onto, count = shrink(x, maps, size, extent, low, high)
    expected = sample_finely(values, onto, size, "bilinear", count, (1, 1))
    torch.testing.assert_close(sample(x, maps, size, extent=extent), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("d", [2, 3])
def test_only_the_axis_that_shrinks_is_smoothed(d):
    """The view is 64 wide and 16 high and lies across the image, turned by a quarter and a little more."""
    n, turn = 64, math.radians(93.0)
    map_ = torch.eye(d, d + 1).unsqueeze(0)
    map_[0, :2, :2] = 0.7 * torch.tensor([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    if d == 3:  # about another axis, too: all three are sampled
        map_[0, :, :3] = map_[0, :, :3] @ torch.tensor(
            [[1.0, 0, 0], [0, math.cos(0.05), -math.sin(0.05)], [0, math.sin(0.05), math.cos(0.05)]]
        )
    stripes = 0.5 + 0.5 * torch.sin(2 * math.pi * torch.arange(n) / 4 + 0.5)
    shape, size = ((1, 1, n, n), (16, 64)) if d == 2 else ((1, 1, 8, n, n), (8, 16, 64))
    along_x, along_y = stripes.expand(shape), stripes.unsqueeze(-1).expand(shape)
    assert sample(along_x.contiguous(), map_, size).std() < 0.1  # 16 samples of 45 pixels
    assert sample(along_y.contiguous(), map_, size).std() > 0.25  # 64 samples of 45 pixels
