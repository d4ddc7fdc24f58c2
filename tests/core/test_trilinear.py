"""Trilinear samples against scipy."""

import numpy as np
import pytest
import scipy.ndimage
import torch

from densepath.core import trilinear


@pytest.mark.parametrize("shape", [(2, 9, 11, 7), (1, 1, 6, 5), (1, 4, 1, 1)])
def test_samples_equal_scipys_also_beyond_the_borders_and_in_thin_volumes(shape, monkeypatch):
    monkeypatch.setattr(trilinear, "_CHUNK", 100)  # several parts
    x, size = torch.rand(shape, dtype=torch.float64), (6, 8, 10)
    map_ = torch.eye(3, 4, dtype=torch.float64) + 0.3 * torch.randn(3, 4, dtype=torch.float64)
    centers = [(2 * np.arange(n) + 1) / n - 1 for n in size]
    z, y, x_ = np.meshgrid(*centers, indexing="ij")
    at = np.einsum("ij,jzyx->izyx", map_.numpy(), np.stack([x_, y, z, np.ones_like(z)]))
    voxels = [((at[2 - axis] + 1) * n - 1) / 2 for axis, n in enumerate(shape[1:])]
    expected = [scipy.ndimage.map_coordinates(volume, voxels, order=1, mode="nearest") for volume in x.numpy()]
    np.testing.assert_allclose(trilinear.sample_trilinear(x, map_, size), np.stack(expected), atol=1e-9)
    single = trilinear.sample_trilinear(x.float(), map_, size)
    assert single.dtype == torch.float32
    np.testing.assert_allclose(single, np.stack(expected), atol=1e-4)
