"""Label maps reach the batches of a run with the images that they belong to."""

import numpy as np
import pytest
import torch
from PIL import Image

from densepath.annotations.label_maps import SIDE, LabelMaps, shrink
from densepath.sources.loader import ImageBatches
from densepath.sources.open import open_images


@pytest.mark.parametrize("size", [(SIDE, SIDE), (224, 224), (50, 333), (7, 7), (1000, 1024)])
def test_a_map_holds_the_labels_at_the_centers_of_its_positions(size):
    labels = np.random.default_rng(0).integers(0, 10**6, size)
    small = shrink(labels)
    expected = np.empty((SIDE, SIDE), np.int64)
    for i, j in np.ndindex(SIDE, SIDE):
        expected[i, j] = labels[(2 * i + 1) * size[0] // (2 * SIDE), (2 * j + 1) * size[1] // (2 * SIDE)]
    assert small.dtype == np.int16 and small.min() == 0
    # The same regions, numbered in the order of their labels.
    order = np.unique(expected)
    assert small.max() == len(order) - 1
    assert np.array_equal(order[small], expected)


@pytest.fixture
def folder(tmp_path):
    """20 images, the i-th in the color i; the eighth is damaged."""
    for i in range(20):
        Image.new("RGB", (32, 32), (i, i, i)).save(tmp_path / f"{i:02d}.png")
    (tmp_path / "07.png").write_bytes(b"nothing")
    for i in range(20, 100):  # so that one damaged image is a small share
        Image.new("RGB", (32, 32), (i, i, i)).save(tmp_path / f"{i:02d}.png")
    return tmp_path


@pytest.mark.parametrize("cache", ["ram", "none"])
def test_batches_bring_the_maps_of_the_images_that_were_read(folder, cache):
    maps = LabelMaps(np.arange(100, dtype=np.int16).repeat(SIDE * SIDE).reshape(-1, SIDE, SIDE))
    images = open_images(folder, cache=cache)
    seen = 0
    for batch in ImageBatches(images, batch_size=10, seed=3, epochs=1, extras={"regions": maps}):
        assert batch.extras["regions"].shape == (10, SIDE, SIDE)
        assert torch.equal(batch.extras["regions"][:, 5, 60], batch.pixels[:, 0, 0, 0].to(torch.int16))
        assert torch.equal(batch.extras["regions"][:, 5, 60], batch.index.to(torch.int16))
        seen += len(batch)
    assert seen == 100
    assert batch.to("meta").extras["regions"].device.type == "meta"
    assert next(iter(ImageBatches(images, batch_size=10, seed=3, epochs=1))).extras == {}
