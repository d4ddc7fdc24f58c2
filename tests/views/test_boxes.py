"""Views are planned without pixels, and made of boxes of images as of whole ones."""

from dataclasses import replace

import pytest
import torch

from densepath.sources.batch import ImageBatch
from densepath.sources.pixel_source import PixelSpec
from densepath.views.augment import Augment
from densepath.views.crops import Crop
from densepath.views.declarations import Center, Cover, RandomView, Turned
from densepath.views.maker import ViewMaker

SPECS = {
    2: PixelSpec(2, 1, (0.0, 4095.0), (0.5,), (0.25,)),
    3: PixelSpec(3, 1, (-1000.0, 1000.0), (0.5,), (0.25,)),
}
SIZES = {2: torch.tensor([[90, 120], [64, 70], [120, 90]]), 3: torch.tensor([[40, 50, 60], [30, 28, 26], [60, 40, 50]])}


def whole(d: int) -> ImageBatch:
    generator = torch.Generator().manual_seed(d)
    canvas = torch.zeros(3, *SIZES[d].amax(0).tolist(), 1, dtype=torch.int16)
    for image, size in enumerate(SIZES[d].tolist()):
        values = torch.randint(-900, 4000, (*size, 1), generator=generator, dtype=torch.int16)
        canvas[(image, *(slice(0, n) for n in size))] = values
    return ImageBatch(canvas, SIZES[d], torch.tensor([4, 9, 2]))


def cut(batch: ImageBatch, boxes: torch.Tensor) -> ImageBatch:
    """What a source that reads boxes gives."""
    d = boxes.shape[-1]
    canvas = torch.full((3, *(boxes[:, 1] - boxes[:, 0]).amax(0).tolist(), 1), -32000, dtype=torch.int16)
    for image, (low, high) in enumerate(boxes.tolist()):
        part = batch.pixels[(image, *(slice(a, b) for a, b in zip(low, high, strict=True)))]
        canvas[(image, *(slice(0, n) for n in part.shape[:d]))] = part
    return replace(batch, pixels=canvas, boxes=boxes)


def views_of(rotation: float, interpolation: str = "bilinear") -> dict:
    crop = Crop(scale=(0.01, 0.1), rotation=rotation, rotation_axes="all", interpolation=interpolation)
    return {"a": RandomView(crop), "b": RandomView(crop, size=0.5, count=2), "t": Turned("a", (0.5,), clean=True)}


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("d", [2, 3])
def test_boxes_give_the_views_of_whole_images(d, interpolation):
    batch, maker = whole(d), ViewMaker(views_of(0.0, interpolation), 16, 3, SPECS[d])
    plan = maker.draw(batch.index, batch.sizes, epoch=1.0)
    boxes = plan.boxes(batch.sizes)
    assert (boxes[:, 0] >= 0).all() and (boxes[:, 1] <= batch.sizes).all()
    assert (boxes[:, 1] - boxes[:, 0] < batch.sizes).any()  # less is read
    everything = torch.stack((torch.zeros_like(batch.sizes), batch.sizes), 1)
    expected = maker.make(replace(batch, boxes=everything), plan)
    made = maker(replace(cut(batch, boxes), plan=plan))
    for name in made.views:
        assert torch.equal(made[name].map, expected[name].map)
        torch.testing.assert_close(made[name].pixels, expected[name].pixels, atol=4e-6, rtol=0)  # 1e-6 of the window
        torch.testing.assert_close(made[name].pixels, maker.make(batch, plan)[name].pixels, atol=2e-3, rtol=0)


@pytest.mark.parametrize("d", [2, 3])
def test_boxes_give_turned_views_to_rounding(d):
    batch, maker = whole(d), ViewMaker(views_of(30.0), 16, 3, SPECS[d])
    plan = maker.draw(batch.index, batch.sizes)
    made, expected = maker.make(cut(batch, plan.boxes(batch.sizes)), plan), maker.make(batch, plan)
    for name in made.views:
        torch.testing.assert_close(made[name].pixels, expected[name].pixels, atol=2e-3, rtol=0)


@pytest.mark.parametrize("rotation", [0.0, 30.0])
@pytest.mark.parametrize("d", [2, 3])
def test_boxes_are_not_much_larger_than_what_the_views_show(d, rotation):
    """Pixels outside change nothing; an enlarged view needs two or three pixels around it."""
    sizes = torch.full((50, d), 400)
    crop = Crop(scale=(0.001, 0.001), ratio=(1.0, 1.0), rotation=rotation)
    plan = ViewMaker({"a": RandomView(crop)}, 200, 0, SPECS[d]).draw(torch.arange(50), sizes)
    boxes = plan.boxes(sizes)
    reach = plan.views["a"].map[..., :-1].abs().sum(-1).flip(-1) * 400
    extra = (boxes[:, 1] - boxes[:, 0]) - reach
    assert extra.min() > 0 and extra.max() < 6


def test_a_plan_needs_no_pixels_and_says_where_views_lie():
    sizes = torch.tensor([[50, 60]] * 4)
    views = {"a": Augment().random_view(), "b": RandomView(), "c": Cover(("a", "b")), "d": Center()}
    maker = ViewMaker(views, 16, 7)
    plan = maker.draw(torch.arange(4), sizes, epoch=2.7)
    assert list(plan.views) == list(views)
    pixels = torch.randint(0, 256, (4, 50, 60, 3), dtype=torch.uint8)
    made = maker(ImageBatch(pixels, sizes, torch.arange(4), epoch=2.2))
    for name, view in plan.views.items():
        assert torch.equal(view.map, made[name].map)
    other = maker(ImageBatch(pixels, sizes, torch.arange(4), epoch=3.0))
    assert not torch.equal(other["a"].map, made["a"].map)
    planned = maker(ImageBatch(pixels, sizes, torch.arange(4), epoch=3.0, plan=plan))  # the plan it is given counts
    assert torch.equal(planned["a"].pixels, made["a"].pixels)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.uint16, torch.float32])
def test_values_of_the_window_become_zero_and_one(dtype):
    low, high = (10.0, 200.0)
    spec = PixelSpec(2, 1, (low, high), (0.25,), (0.5,))
    ramp = torch.arange(0, 256).view(1, 16, 16, 1).to(dtype)
    batch = ImageBatch(ramp, torch.tensor([[16, 16]]), torch.zeros(1, dtype=torch.int64))
    crop = Crop(scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=())
    made = ViewMaker({"a": RandomView(crop)}, 16, 0, spec)(batch)["a"]
    expected = (((torch.arange(256.0) - low) / (high - low)).clamp(0, 1) - 0.25) / 0.5
    torch.testing.assert_close(made.pixels.flatten(), expected)
