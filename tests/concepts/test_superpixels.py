"""Superpixels equal scikit-image's for the whole image, and follow edges."""

import numpy as np
import pytest
from skimage.segmentation import felzenszwalb

from densepath.annotations.label_cache import label_images
from densepath.annotations.label_maps import shrink
from densepath.concepts.superpixels import Superpixels
from densepath.sources.open import open_images
from densepath.synthetic.tissue import write_tiles


@pytest.mark.parametrize("scale", [50, 500])
def test_the_maps_of_a_folder_equal_scikit_images(tmp_path, scale):
    write_tiles(tmp_path / "tiles", count=2, size=96, seed=1)
    images = open_images(tmp_path / "tiles", cache="none")
    maps = label_images(images, Superpixels(scale), tmp_path / "cache").maps
    for position in range(2):
        expected = felzenszwalb(images.read(position), scale=scale, sigma=0.8, min_size=scale)
        assert np.array_equal(maps[position], shrink(expected))
        # More than one, and at most as many as fit.
        assert 2 <= maps[position].max() + 1 <= 96 * 96 / scale


def test_no_superpixel_crosses_an_edge():
    image = np.full((60, 80, 3), 230, np.uint8)
    image[:, 40:] = (120, 60, 140)
    labels = Superpixels(50).label(image, "")
    assert not set(labels[:, :36].flat) & set(labels[:, 44:].flat)


def test_each_scale_has_its_own_cache():
    assert Superpixels(50).identity() != Superpixels(500).identity()
