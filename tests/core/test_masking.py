import math

import pytest
import torch

from densepath.core.errors import UserError
from densepath.core.masking import (
    count_visible,
    enlarge,
    from_patches,
    patches_along,
    random_visible,
    square_grid,
    standardize_patches,
    to_patches,
)
from densepath.core.random import uniform


def test_count_visible_is_what_the_mask_leaves_rounded():
    assert count_visible(49, 0.7) == 15  # 14.7
    assert count_visible(49, 0.6) == 20  # 19.6, as SparK
    assert count_visible(196, 0.75) == 49


@pytest.mark.parametrize(("ratio", "left"), [(0.95, "0 of 9"), (0.01, "9 of 9")])
def test_a_mask_leaves_something_of_either_kind(ratio, left):
    with pytest.raises(UserError, match=f"a mask ratio of {ratio} leaves {left} patches visible"):
        count_visible(9, ratio)


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.2, 2.0, math.nan, math.inf])
def test_a_mask_ratio_is_a_share(ratio):
    with pytest.raises(UserError, match=f"the mask ratio is a share between 0 and 1, not {ratio}"):
        count_visible(9, ratio)


def test_patches_divide_a_view():
    assert patches_along((64, 224, 96), 32) == (2, 7, 3)
    assert square_grid((224, 224), 32) == 7
    for size in (100, 16):
        with pytest.raises(UserError, match="not a multiple"):
            patches_along((64, size), 32)


def test_random_visible_takes_as_many_of_each_view_and_each_patch_as_often():
    noise = uniform(0, 0, torch.arange(4000)[:, None], 1, torch.arange(3)).flatten(1)[:, :9]
    visible = random_visible(noise, 4)
    assert visible.dtype == torch.bool
    assert (visible.sum(1) == 4).all()
    share = visible.float().mean(0)
    assert (share - 4 / 9).abs().max() < 4 * (4 / 9 * 5 / 9 / 4000) ** 0.5
    smallest = noise.topk(4, largest=False).indices
    assert visible.gather(1, smallest).all()


def test_enlarge_repeats_each_patch():
    grid = torch.arange(8).view(2, 2, 2)
    large = enlarge(grid, 6)
    assert large.shape == (2, 1, 6, 6)
    for row in range(6):
        for column in range(6):
            assert torch.equal(large[:, 0, row, column], grid[:, row // 3, column // 3])


def test_patches_by_a_loop_and_back():
    x = torch.randn(2, 3, 8, 12, generator=torch.Generator().manual_seed(0))
    patches = to_patches(x, 4)
    assert patches.shape == (2, 6, 48)
    for number in range(6):
        top, left = 4 * (number // 3), 4 * (number % 3)
        expected = [x[:, c, top + r, left + k] for r in range(4) for k in range(4) for c in range(3)]
        assert torch.equal(patches[:, number], torch.stack(expected, 1))
    assert torch.equal(from_patches(patches, 4, 3), x)


def test_standardize_patches_has_the_unbiased_variance():
    x = 3 + 5 * torch.randn(2, 4, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y, mean, deviation = standardize_patches(x)
    for image in range(2):
        for patch in range(4):
            values = x[image, patch].tolist()
            m = sum(values) / 30
            s = (sum((v - m) ** 2 for v in values) / 29 + 1e-6) ** 0.5
            assert torch.allclose(y[image, patch], (x[image, patch] - m) / s)
    assert torch.allclose(y * deviation + mean, x)
