"""The batch that goes from loaders to views."""

from __future__ import annotations

import numpy as np
import torch

from densepath.sources.batch import ImageBatch, fill_canvas, new_canvas
from densepath.sources.pixel_source import PixelSpec


def test_fill_canvas_puts_images_in_the_corner_and_zeros_around_them() -> None:
    images = [np.full((2, 3, 3), 7, np.uint8), np.full((4, 1, 3), 9, np.uint8)]
    canvas = np.full((2, 5, 4, 3), 255, np.uint8)
    fill_canvas(canvas, images)
    for place, image in zip(canvas, images, strict=True):
        height, width = image.shape[:2]
        assert (place[:height, :width] == image).all()
        assert place.sum() == image.sum()


def test_fill_canvas_fills_tensors_as_it_fills_arrays() -> None:
    images = [torch.randint(0, 256, (height, width, 3), dtype=torch.uint8) for height, width in ((3, 2), (1, 4))]
    canvas = new_canvas(2, (3, 4))
    fill_canvas(canvas, images)
    other = np.empty((2, 3, 4, 3), np.uint8)
    fill_canvas(other, [image.numpy() for image in images])
    assert torch.equal(canvas, torch.from_numpy(other))


def test_moving_a_batch_keeps_what_it_says() -> None:
    batch = ImageBatch(
        torch.randint(0, 256, (2, 4, 5, 3), dtype=torch.uint8),
        torch.tensor([[4, 5], [2, 3]]),
        torch.tensor([7, 1]),
        step=3,
        epoch=1.5,
        progress=0.25,
        corrupt=("a.png",),
        spec=PixelSpec(window=(0, 100)),
    )
    moved = batch.to("cpu")
    assert len(moved) == 2
    assert torch.equal(moved.pixels, batch.pixels)
    assert torch.equal(moved.sizes, batch.sizes)
    assert torch.equal(moved.index, batch.index)
    assert moved.spec == PixelSpec(window=(0, 100))
    assert (moved.step, moved.epoch, moved.progress, moved.corrupt) == (3, 1.5, 0.25, ("a.png",))
    there = batch.to("meta")
    assert (there.pixels.device.type, there.sizes.device.type, there.index.device.type) == ("meta", "cpu", "cpu")
