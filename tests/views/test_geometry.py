"""Where random views lie: torchvision's distribution, inside the image, flipped and turned as asked."""

import math

import pytest
import torch
from scipy import stats
from torchvision.transforms.v2 import RandomResizedCrop

from densepath.core.affine import bounds
from densepath.views.crops import Crop
from densepath.views.geometry import crop_maps
from densepath.views.random_streams import Draw


def numbers(count: int) -> Draw:
    return Draw(0, 0, torch.arange(count), torch.zeros(count, dtype=torch.int64))


def random_maps(crop: Crop, sizes: torch.Tensor, draw: Draw) -> torch.Tensor:
    return crop_maps(crop, sizes, (224, 224), draw)


def boxes(maps: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """(B, 4): left, top, width, height in pixels."""
    low, high = bounds(maps)
    size = torch.tensor([width, height])
    return torch.cat(((low + 1) / 2 * size, (high - low) / 2 * size), dim=1)


@pytest.mark.parametrize(("height", "width"), [(224, 224), (100, 300)])
def test_crops_are_distributed_as_torchvisions(height, width):
    count = 3000
    maps = random_maps(Crop(), torch.tensor([[height, width]]).expand(count, -1), numbers(count))
    ours = boxes(maps, height, width)
    torch.manual_seed(0)
    image, crop = torch.empty(3, height, width), RandomResizedCrop(8, scale=(0.2, 1.0))
    theirs = [crop.make_params([image]) for _ in range(count)]
    room = {"left": width - ours[:, 2], "top": height - ours[:, 3]}
    for column, name in enumerate(("left", "top", "width", "height")):
        mine = ours[:, column]
        if name in room:  # theirs is one of the whole pixels 0 .. room, each as likely
            mine = (mine / room[name].clamp(min=1e-3) * (room[name] + 1)).floor()
        assert stats.ks_2samp(mine.round().numpy(), [p[name] for p in theirs]).pvalue > 1e-3, name


def test_views_lie_inside_their_images():
    augment = Crop(rotation=180, quarter_turns=True, flip=(0.5, 0.5), scale=(0.01, 1.0))
    sizes = torch.randint(20, 400, (2000, 2))
    low, high = bounds(random_maps(augment, sizes, numbers(2000)))
    assert low.min() > -1 - 1e-5 and high.max() < 1 + 1e-5


def test_flips_come_as_often_as_asked():
    maps = random_maps(Crop(flip=(0.3, 0.7)), torch.full((4000, 2), 50), numbers(4000))
    assert abs((maps[:, 0, 0] < 0).float().mean().item() - 0.3) < 0.03
    assert abs((maps[:, 1, 1] < 0).float().mean().item() - 0.7) < 0.03


def test_rotation_keeps_squares_square():
    """In pixels of an oblong image, a rotated view of a square stays one: equal sides at right angles."""
    augment = Crop(rotation=45, ratio=(1.0, 1.0), scale=(0.05, 0.1), flip=())
    height, width = 100, 300
    maps = random_maps(augment, torch.tensor([[height, width]]).expand(500, -1), numbers(500))
    sides = maps[..., :2] * torch.tensor([width, height]).view(1, 2, 1)
    across, down = sides[..., 0], sides[..., 1]
    torch.testing.assert_close((across * down).sum(1), torch.zeros(500), atol=1e-2, rtol=0)
    torch.testing.assert_close(across.norm(dim=1), down.norm(dim=1), atol=1e-3, rtol=1e-4)
    angles = torch.rad2deg(torch.atan2(across[:, 1], across[:, 0]))
    assert stats.kstest((angles.numpy() + 45) / 90, "uniform").pvalue > 1e-3


def test_quarter_turns_are_equally_likely():
    maps = random_maps(Crop(quarter_turns=True, flip=()), torch.full((4000, 2), 64), numbers(4000))
    angles = torch.atan2(maps[:, 1, 0], maps[:, 0, 0]).div(math.pi / 2).round().long() % 4
    assert stats.chisquare(torch.bincount(angles, minlength=4).numpy()).pvalue > 1e-3
