"""Slices of volumes, compared with world coordinates."""

import numpy as np

from densepath.core.slices import AXIAL, CORONAL, SAGITTAL, size_in_mm, slice_of


def test_slices_lie_as_a_radiologist_sees_them() -> None:
    """Superior or anterior is on top, and right or anterior on the left; a voxel is as large as its mm."""
    s, a, r = np.meshgrid(np.arange(3), np.arange(4), np.arange(5), indexing="ij")  # indices grow towards S, A, R
    world = np.stack([s, a, r], axis=-1)
    spacing, scale = (4.0, 2.0, 1.0), 3.0
    for axis, (up, left) in {AXIAL: (1, 2), CORONAL: (0, 2), SAGITTAL: (0, 1)}.items():
        plane = slice_of(world, axis, 1)
        assert (plane[..., axis] == 1).all()
        assert plane[0, 0, up] == world[..., up].max() and plane[-1, 0, up] == 0
        assert plane[0, 0, left] == world[..., left].max() and plane[0, -1, left] == 0
        size = size_in_mm(world.shape[:3], spacing, axis, scale)
        enlarged = slice_of(world, axis, 1, size)
        for along, coordinate in enumerate((up, left)):
            pixels = int(scale * spacing[coordinate])
            own = np.moveaxis(enlarged[..., coordinate], along, 0)[:, 0]
            assert np.array_equal(own, np.repeat(np.arange(world.shape[coordinate])[::-1], pixels))


def test_a_reduced_slice_has_the_voxels_at_the_centers_of_its_pixels() -> None:
    volume = np.broadcast_to(np.arange(3)[:, None, None], (3, 3, 2))  # indices grow towards S
    for height, shown in {2: [2, 0], 5: [2, 2, 1, 0, 0], 1: [1]}.items():
        assert slice_of(volume, CORONAL, 0, (height, 2))[:, 0].tolist() == shown
