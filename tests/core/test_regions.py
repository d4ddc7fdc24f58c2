"""Masked average pooling against a plain float64 loop."""

import pytest
import torch

from densepath.core.regions import Regions


def test_pooling_equals_a_loop():
    labels, features = torch.randint(-1, 4, (3, 5, 6)), torch.randn(3, 8, 5, 6, dtype=torch.float64)
    labels[1] = torch.where(labels[1] == 2, 0, labels[1])  # an empty region
    regions = Regions.of_labels(labels, 4)
    pooled = regions.pool(features)
    for image in range(3):
        for region in range(4):
            positions = [features[image, :, i, j] for i in range(5) for j in range(6) if labels[image, i, j] == region]
            expected = torch.stack(positions).mean(0) if positions else torch.zeros(8, dtype=torch.float64)
            torch.testing.assert_close(pooled[image, region], expected)
            assert regions.area[image, region] == len(positions)
            assert regions.present()[image, region] == bool(positions)


def test_one_region_is_global_average_pooling():
    features = torch.randn(2, 8, 7, 7)
    pooled = Regions.of_labels(torch.zeros(2, 7, 7, dtype=torch.int64), 1).pool(features)
    torch.testing.assert_close(pooled[:, 0], features.mean((2, 3)))


def test_soft_regions_weight_positions_by_their_shares():
    shares = torch.rand(2, 3, 4, 5, dtype=torch.float64)
    shares[0, 1] = 0
    shares[1, 2] = 1e-7  # what rounding leaves of nothing
    features = torch.randn(2, 6, 4, 5, dtype=torch.float64)
    regions = Regions(shares)
    pooled = regions.pool(features)
    for image, region in ((i, r) for i in range(2) for r in range(3)):
        positions = [(i, j) for i in range(4) for j in range(5)]
        weight = sum(shares[image, region, i, j] for i, j in positions)
        there = (image, region) not in ((0, 1), (1, 2))
        assert regions.present()[image, region] == there
        if there:
            total = sum(shares[image, region, i, j] * features[image, :, i, j] for i, j in positions)
            torch.testing.assert_close(pooled[image, region], total / weight)


@pytest.mark.parametrize("autocast", [False, True])
def test_pooling_in_half_precision_exceeds_its_range_nowhere(autocast):
    side = 257  # more positions than the largest number in float16
    features = torch.full((1, 1, side, side), 3.0, dtype=torch.float32 if autocast else torch.float16)
    with torch.autocast("cpu", torch.float16, enabled=autocast):
        pooled = Regions.of_labels(torch.zeros(1, side, side, dtype=torch.int64), 1).pool(features)
    assert pooled.dtype == torch.float16 and pooled.item() == 3
