"""Batches of views: what they show, where they lie, and what they depend on."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as TF

from densepath.core.affine import bounds, warp
from densepath.core.errors import UserError
from densepath.sources.batch import ImageBatch
from densepath.sources.pixel_source import PixelSpec
from densepath.views.augment import Augment
from densepath.views.crops import Crop
from densepath.views.declarations import Center, Cover, RandomView
from densepath.views.maker import ViewMaker

PLAIN = RandomView()
VIEWS = {"query": Augment().random_view(), "key": Augment().random_view(), "reference": Cover(("query", "key"))}


def images(count: int = 6, height: int = 64, width: int = 80, start: int = 0) -> ImageBatch:
    generator = torch.Generator().manual_seed(start)
    pixels = torch.randint(0, 256, (count, height, width, 3), generator=generator, dtype=torch.uint8)
    return ImageBatch(pixels, torch.tensor([[height, width]]).expand(count, -1), torch.arange(start, start + count))


def colors(pixels: torch.Tensor) -> torch.Tensor:
    return pixels * torch.tensor(PixelSpec().std).view(1, 3, 1, 1) + torch.tensor(PixelSpec().mean).view(1, 3, 1, 1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int16, torch.uint16])
@pytest.mark.parametrize("ndim", [2, 3])
def test_views_of_pixels_of_any_dtype_are_those_of_float32(ndim: int, dtype: torch.dtype):
    shape = (3, 24, 20, 16)[: ndim + 1]
    pixels = torch.randint(0, 256, (*shape, 3), generator=torch.Generator().manual_seed(0)).float()
    sizes = torch.tensor([shape[1:]] * 3)
    make = ViewMaker({"view": PLAIN, "center": Center()}, 16, 0, PixelSpec.default(3, ndim=ndim))
    expected = make(ImageBatch(pixels, sizes, torch.arange(3)))
    made = make(ImageBatch(pixels.to(dtype), sizes, torch.arange(3)))
    for name in ("view", "center"):
        assert made[name].pixels.dtype == torch.float32
        assert torch.equal(made[name].pixels, expected[name].pixels)


def test_a_view_shows_what_its_map_says():
    """Pixels against torchvision's resize of the same rectangle cut out of the image."""
    batch = images(12)
    view = ViewMaker({"view": PLAIN}, 24, seed=0)(batch)["view"]
    low, high = bounds(view.map)
    size = torch.tensor([80.0, 64.0])
    checked = 0
    for i in range(len(batch)):
        left, top = ((low[i] + 1) / 2 * size).tolist()
        right, bottom = ((high[i] + 1) / 2 * size).tolist()
        # Enlarged so that the crop's edges fall on pixels' edges; the box filter keeps what it enlarges.
        image = batch.pixels[i].permute(2, 0, 1).float().unsqueeze(0)
        fine = image.repeat_interleave(20, 2).repeat_interleave(20, 3)
        cut = fine[..., round(top * 20) : round(bottom * 20), round(left * 20) : round(right * 20)]
        expected = TF.resize(cut, [24, 24], InterpolationMode.BILINEAR, antialias=True) / 255
        if view.map[i, 0, 0] < 0:
            expected = expected.flip(-1)
        ours = colors(view.pixels[i : i + 1])
        # The wider filter of our minification smooths more than a box; they correlate all the same.
        pair = torch.stack((ours.flatten(), expected.flatten()))
        checked += torch.corrcoef(pair)[0, 1] > 0.9
    assert checked == len(batch)


def test_the_reference_covers_both_views():
    batch = ViewMaker(VIEWS, 32, seed=0)(images(50))
    low, high = bounds(batch["reference"].map)
    for name in ("query", "key"):
        inner_low, inner_high = bounds(batch[name].map)
        assert (inner_low >= low - 1e-6).all() and (inner_high <= high + 1e-6).all()
    touching = torch.minimum(bounds(batch["query"].map)[0], bounds(batch["key"].map)[0])
    torch.testing.assert_close(low, touching)


def test_views_are_aligned_by_their_maps():
    """A smooth image seen in one view and carried to the other equals the other, where they overlap."""
    y, x = torch.meshgrid(torch.linspace(0, 3, 128), torch.linspace(0, 4, 128), indexing="ij")
    smooth = ((torch.sin(x) * torch.cos(y) + 1) * 120).to(torch.uint8)
    batch = ImageBatch(smooth.view(1, 128, 128, 1).expand(8, -1, -1, 3), torch.full((8, 2), 128), torch.arange(8))
    turned = RandomView(Crop(rotation=30, quarter_turns=True))
    views = ViewMaker({"a": turned, "b": turned}, 48, seed=3)(batch)
    moved, valid = warp(views["a"].pixels, views["a"].map, views["b"].map, (48, 48))
    difference = (moved - views["b"].pixels).abs().amax(1)
    assert valid.float().mean() > 0.2
    assert difference[valid].quantile(0.99) < 0.08


@pytest.mark.parametrize("rotation", [0.0, 180.0])
def test_views_depend_only_on_seed_epoch_and_image(rotation: float):
    query = replace(VIEWS["query"], crop=Crop(rotation=rotation))
    turned = {**VIEWS, "query": query}
    maker = ViewMaker(turned, 16, seed=5)
    whole = images(6)
    together = maker(whole)
    for rows in (slice(2, 4), slice(0, 1), slice(5, 6)):
        part = replace(whole, pixels=whole.pixels[rows], sizes=whole.sizes[rows], index=whole.index[rows], step=99)
        alone = maker(part)
        for name in VIEWS:
            torch.testing.assert_close(alone[name].pixels, together[name].pixels[rows])
            assert torch.equal(alone[name].map, together[name].map[rows])
    assert not torch.equal(maker(replace(whole, epoch=1.0))["query"].map, together["query"].map)
    assert torch.equal(maker(replace(whole, epoch=0.7))["query"].map, together["query"].map)
    assert not torch.equal(ViewMaker(VIEWS, 16, seed=6)(whole)["query"].map, together["query"].map)
    assert not torch.equal(together["query"].map, together["key"].map)


def test_padding_of_smaller_images_is_never_seen():
    small = images(3, 40, 30)
    canvas = torch.zeros(3, 64, 64, 3, dtype=torch.uint8)
    canvas[:, :40, :30] = small.pixels
    maker = ViewMaker({"view": RandomView(Crop(rotation=20))}, 24, seed=1)
    padded = maker(replace(small, pixels=canvas))
    torch.testing.assert_close(padded["view"].pixels, maker(small)["view"].pixels, atol=1e-3, rtol=1e-3)


def test_numbers_of_a_method_differ_from_those_of_its_views():
    batch = ViewMaker(VIEWS, 16, seed=0)(images(100))
    numbers = batch.uniform(10)
    assert numbers.shape == (100, 10) and torch.equal(numbers, batch.uniform(10))
    assert torch.equal(numbers[:, :6], batch.uniform(6))
    assert len(numbers.unique()) > 990


@pytest.mark.parametrize(("height", "width"), [(256, 256), (256, 320), (384, 256)])
def test_the_center_is_that_of_resizing_and_cropping(height, width):
    """Resize to 256, crop 224 (here 32 and 28 for a view of 28 px): against torchvision, on smooth images."""
    coarse = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic").clamp(0, 1)
    pixels = (smooth * 255).round().to(torch.uint8)
    batch = ImageBatch(pixels.permute(0, 2, 3, 1).contiguous(), torch.tensor([[height, width]] * 2), torch.arange(2))
    made = ViewMaker({"center": Center()}, 28, seed=0)(batch)["center"]
    expected = TF.center_crop(TF.resize(pixels / 255, 32, antialias=True), 28)
    torch.testing.assert_close(colors(made.pixels), expected, rtol=0, atol=0.02)
    low, high = bounds(made.map)
    side = 0.875 * min(height, width)
    torch.testing.assert_close((high - low) / 2 * torch.tensor([width, height]), torch.full((2, 2), side))
    torch.testing.assert_close(low, -high)


def test_by_default_pixels_mean_what_their_source_says():
    batch, spec = images(2), PixelSpec(window=(0.0, 65535.0))
    deep = replace(batch, pixels=(batch.pixels.int() * 257).to(torch.uint16), spec=spec)
    expected = ViewMaker(VIEWS, 16, seed=0)(batch)
    for maker in (ViewMaker(VIEWS, 16, seed=0), ViewMaker(VIEWS, 16, seed=0, spec=spec)):
        made = maker(deep)
        for name in VIEWS:
            torch.testing.assert_close(made[name].pixels, expected[name].pixels, rtol=0, atol=1e-4)
    given = ViewMaker({"view": PLAIN}, 16, seed=0, spec=PixelSpec())  # as for weights that have seen others
    assert torch.equal(given(replace(batch, spec=spec))["view"].pixels, given(batch)["view"].pixels)


def test_a_size_may_be_a_number_of_numpy():
    maker = ViewMaker({"center": Center()}, np.int64(32), seed=0)
    assert maker.sizes() == {"center": (32, 32)}


def test_views_of_grey_volumes_need_no_specification_of_their_own():
    spec = PixelSpec.default(1, (-1000, 1000), ndim=3)
    pixels = torch.randint(-1000, 1000, (2, 12, 14, 16, 1), dtype=torch.int16)
    batch = ImageBatch(pixels, torch.tensor([[12, 14, 16]] * 2), torch.arange(2), spec=spec)
    made = [ViewMaker({"view": PLAIN}, 8, 0, each, torch.channels_last)(batch)["view"].pixels for each in (None, spec)]
    assert torch.equal(*made) and made[0].stride() == made[1].stride()
    with pytest.raises(UserError, match="ColorJitter"):
        ViewMaker(VIEWS, 8, 0)(batch)


def test_images_with_other_channels_than_the_specification_are_refused():
    batch = images(2)
    grey = replace(batch, pixels=batch.pixels[..., :1])
    with pytest.raises(UserError, match="1 channel do not fit the pixel specification, which has 3"):
        ViewMaker({"view": PLAIN}, 16, seed=0)(grey)
    with pytest.raises(UserError, match="3 channels do not fit"):
        ViewMaker({"view": PLAIN}, 16, seed=0, spec=PixelSpec.default(1))(batch)


def test_views_do_not_depend_on_the_defaults_of_torch():
    batch, maker = images(3), ViewMaker({"view": Augment(stain=0.5).random_view()}, 16, seed=0)
    expected = maker(batch)["view"].pixels
    with torch.autocast("cpu", torch.bfloat16), torch.device("meta"):
        torch.set_default_dtype(torch.float64)
        try:
            made = maker(batch)["view"].pixels
            plan = maker.draw(batch.index, batch.sizes)
        finally:
            torch.set_default_dtype(torch.float32)
    assert torch.equal(made, expected)
    assert torch.equal(maker.make(batch, plan)["view"].pixels, expected)


def test_a_source_of_another_specification_is_checked_once(monkeypatch):
    batch, checked = replace(images(2), spec=PixelSpec(window=(0.0, 65535.0))), []
    maker = ViewMaker({"view": PLAIN}, 16, seed=0)
    monkeypatch.setattr("densepath.views.maker.check_views", lambda *given: checked.append(given))
    for _ in range(3):
        maker(batch)
    assert len(checked) == 1
