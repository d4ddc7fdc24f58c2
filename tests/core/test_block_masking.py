"""Block-wise masks, compared with plain loops of BEiT's algorithm."""

import math

import pytest
import torch
from scipy import ndimage

from densepath.core.block_masking import ATTEMPTS, block_masks, count_draws
from densepath.core.random import uniform


def loops(draws, grid, count, smallest):
    """The released generator for one image, with given random numbers."""
    order, attempts = draws[: grid**2].tolist(), iter(draws[grid**2 :].view(ATTEMPTS, 4).tolist())
    masked, failures = set(), 0
    while len(masked) < count and failures < 10:
        u = next(attempts, None)
        if u is None:
            break
        area = smallest + u[0] * (count - len(masked) - smallest)
        aspect = math.exp(math.log(0.3) + u[1] * (math.log(1 / 0.3) - math.log(0.3)))
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        failures += 1
        if h < grid and w < grid:
            top, left = int(u[2] * (grid - h + 1)), int(u[3] * (grid - w + 1))
            new = {(top + i, left + j) for i in range(h) for j in range(w)} - masked
            if 0 < len(new) <= count - len(masked):
                masked |= new
                failures = 0
    rest = [patch for patch in range(grid**2) if (patch // grid, patch % grid) not in masked]
    rest.sort(key=lambda patch: order[patch])
    chosen = {row * grid + column for row, column in masked} | set(rest[: count - len(masked)])
    return [patch in chosen for patch in range(grid**2)]


@pytest.mark.parametrize(("grid", "count", "smallest"), [(14, 75, 16), (6, 14, 16), (7, 20, 4), (2, 1, 1)])
def test_masks_equal_the_plain_loops(grid, count, smallest):
    draws = torch.rand(60, count_draws(grid**2), generator=torch.Generator().manual_seed(0))
    masks = block_masks(draws, grid, count, smallest)
    assert masks.tolist() == [loops(row, grid, count, min(smallest, count)) for row in draws]


def test_the_count_is_exact_and_the_masks_are_blocks():
    draws = uniform(3, 0, torch.arange(500)[:, None], 7, torch.arange(count_draws(196) // 4)).flatten(1)
    masks = block_masks(draws, 14, 75)
    assert masks.shape == (500, 196) and (masks.sum(1) == 75).all()

    def neighbours(masks):
        """The share of masked patches whose right neighbour is masked, too."""
        grids = masks.view(-1, 14, 14)
        return ((grids[:, :, 1:] & grids[:, :, :-1]).sum() / grids[:, :, :-1].sum()).item()

    scattered = torch.rand(500, 196, generator=torch.Generator().manual_seed(1)).argsort(1) < 75
    assert neighbours(scattered) == pytest.approx(74 / 195, abs=0.01)
    assert neighbours(masks) > 0.7
    parts = [ndimage.label(mask.view(14, 14).numpy())[1] for mask in masks]
    assert sum(parts) / 500 < 5
    # No place is spared: the corners are masked less often than the middle, but they are.
    often = masks.float().mean(0).view(14, 14)
    assert 0.05 < often[0, 0] < often[6:8, 6:8].mean() < 0.75
    torch.testing.assert_close(often, often.T, atol=0.1, rtol=0)


def test_an_image_has_the_same_mask_in_any_batch():
    draws = torch.rand(8, count_draws(196), generator=torch.Generator().manual_seed(2))
    whole = block_masks(draws, 14, 75)
    assert torch.equal(whole, torch.cat([block_masks(part, 14, 75) for part in draws.split(3)]))
    assert len({tuple(mask.tolist()) for mask in whole}) == 8
