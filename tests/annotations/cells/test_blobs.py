"""Nuclei without weights: painted ones are found at every resolution, once, and nothing else is."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from densepath.annotations.cells.blobs import StainLevels, find_cells, hematoxylin

PINK, PURPLE, GLASS = (225, 170, 200), (95, 60, 140), (243, 243, 244)


def tissue(
    height: float, width: float, nuclei: np.ndarray, mpp: float | tuple[float, float], radius: float = 3.2
) -> np.ndarray:
    """Eosin with elliptic nuclei around centers (N, 2) x, y, all in µm; noise as of a camera."""
    fine = 0.125
    y, x = (np.arange(round(side / fine)) * fine + fine / 2 for side in (height, width))
    image = np.empty((len(y), len(x), 3), np.float32)
    image[:] = PINK
    for number, (cx, cy) in enumerate(nuclei):
        rows, columns = (slice(*np.searchsorted(axis, (c - 9, c + 9))) for axis, c in ((y, cy), (x, cx)))
        dy, dx, angle = y[rows, None] - cy, x[None, columns] - cx, number
        along, across = dx * np.cos(angle) + dy * np.sin(angle), dy * np.cos(angle) - dx * np.sin(angle)
        image[rows, columns][(along / 1.25) ** 2 + (across / 0.8) ** 2 < radius**2] = PURPLE
    mpp_y, mpp_x = np.broadcast_to(mpp, 2)
    size = round(width / mpp_x), round(height / mpp_y)
    small = np.asarray(Image.fromarray(image.astype(np.uint8)).resize(size, Image.Resampling.BOX)).astype(np.float32)
    return np.clip(small + np.random.default_rng(0).normal(0, 3, small.shape), 0, 255).astype(np.uint8)


def places(height: float, width: float, apart: float, seed: int = 0) -> np.ndarray:
    """Jittered places in µm, at least 0.6 ``apart`` from each other."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(np.arange(10, width - 8, apart), np.arange(10, height - 8, apart)), -1).reshape(-1, 2)
    return grid + rng.uniform(-0.2, 0.2, grid.shape) * apart


@pytest.mark.parametrize("mpp", [0.23, 0.25, 0.5, 1.0, (0.25, 0.5), (0.6, 0.4)])
def test_painted_nuclei_are_found_within_a_micrometer(mpp: float | tuple[float, float]) -> None:
    true = places(100, 120, 13)
    found = find_cells(tissue(100, 120, true, mpp), mpp) * np.broadcast_to(mpp, 2)[::-1]
    distance = np.linalg.norm(found[:, None] - true[None], axis=2)
    assert len(found) == len(true) and (distance.min(axis=0) < 1).all() and (distance.min(axis=1) < 1).all()


def test_touching_nuclei_are_two() -> None:
    true = np.array([[30.0, 30.0], [36.5, 30.0], [60.0, 60.0]])
    found = find_cells(tissue(80, 80, true, 0.25, radius=3.3), 0.25) * 0.25
    assert len(found) == 3 and np.linalg.norm(found[:, None] - true, axis=2).min(axis=0).max() < 1.5


def test_glass_and_ink_have_no_cells_and_tissue_without_nuclei_has_none() -> None:
    rng = np.random.default_rng(0)
    for color in (GLASS, (20, 160, 90)):
        noisy = np.clip(np.full((160, 160, 3), color) + rng.normal(0, 2, (160, 160, 3)), 0, 255).astype(np.uint8)
        assert len(find_cells(noisy, 0.5)) == 0
    assert hematoxylin(np.full((1, 1, 3), (20, 160, 90), np.uint8)).item() == 0
    assert len(find_cells(tissue(80, 80, np.zeros((0, 2)), 0.5), 0.5)) == 0
    assert find_cells(np.full((1, 1, 3), 255, np.uint8), 0.5).shape == (0, 2)


def test_a_part_with_the_stain_of_the_whole_has_the_cells_of_the_whole() -> None:
    image = tissue(150, 150, places(150, 150, 12), 0.5)
    levels = StainLevels.of([image])
    whole, part = find_cells(image, 0.5, levels), find_cells(image[64:264, 64:264], 0.5, levels) + 64
    inner = [cells[((cells > 140) & (cells < 180)).all(axis=1)] for cells in (whole, part)]
    assert len(inner[0]) > 1 and np.allclose(*inner, rtol=0, atol=1e-3)
