"""Views that are drawn before pixels are read: only what they need is read, and it is the same as in whole images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from densepath.core.random import permute, uniform
from densepath.sources import packed
from densepath.sources.batch import ImageBatch, box_of, fill_canvas, new_canvas
from densepath.sources.loader import ImageBatches
from densepath.sources.packing import open_store, write_store
from densepath.sources.pixel_source import Gathered, PixelSpec
from densepath.synthetic.volumes import SyntheticVolumes, VolumeLabels
from densepath.views.augment import Augment
from densepath.views.crops import Crop
from densepath.views.declarations import RandomView
from densepath.views.maker import ViewMaker

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
SIZE = (12, 16, 16)


@dataclass(frozen=True)
class Corners:
    """A plan: each image is seen in a box of 5 voxels that is a function of (epoch, image)."""

    index: Tensor
    epoch: int
    spacing: Tensor | None

    def boxes(self, sizes: Tensor) -> Tensor:
        share = uniform(0, self.epoch, self.index, view=0, stream=0)[:, :3]
        low = (share * (sizes - 5 + 1)).long()
        return torch.stack((low, low + 5), dim=1)


def draw(index: Tensor, sizes: Tensor, spacing: Tensor | None, epoch: float) -> Corners:
    assert sizes.shape == (len(index), 3) and sizes.min() >= 8, "of images that can be read"
    return Corners(index, int(epoch), spacing)


class FailingVolumes:
    """Volumes that are decoded, of which some turn out corrupt when they are read."""

    spec = PixelSpec.default(1, (-1000.0, 600.0), 3)
    dtype = torch.int16
    device = torch.device("cpu")
    decodes = True
    reads_boxes = True

    def __init__(self, volumes: SyntheticVolumes, broken: tuple[int, ...] = (), known: tuple[int, ...] = ()) -> None:
        self.volumes, self.broken = volumes, broken
        self.corrupt: Mapping[int, str] = {k: self.names(k) for k in known}

    def __len__(self) -> int:
        return len(self.volumes)

    def names(self, position: int) -> str:
        return self.volumes.names(position)

    def sizes(self, index: Tensor) -> Tensor:
        assert not self.corrupt.keys() & set(index.tolist()), "the size of a corrupt image is unknown"
        return self.volumes.sizes(index)

    def spacing(self, index: Tensor) -> Tensor:
        return self.volumes.spacing(index)

    def read(self, position: int) -> npt.NDArray[Any]:
        return self.volumes.read(position)

    def gather(self, index: Tensor, boxes: Tensor | None = None, pin: bool = False) -> Gathered:
        taken = index.tolist()
        corrupt = {position: self.names(position) for position in taken if position in self.broken}
        taken = [next(p % len(self) for p in range(k, k + 99) if p not in self.broken) for k in taken]
        read = torch.tensor(taken)
        images = [self.read(position) for position in taken]
        if boxes is not None:
            images = [box_of(image, box) for image, box in zip(images, boxes.tolist(), strict=True)]
        shape = [max(lengths) for lengths in zip(*(image.shape[:-1] for image in images), strict=True)]
        canvas = new_canvas(len(read), shape, 1, self.dtype, pin)
        fill_canvas(canvas.numpy(), images)
        return Gathered(canvas, self.volumes.sizes(read), read, corrupt, boxes)

    def smallest(self) -> tuple[int, int]:
        return self.volumes.smallest()

    def digest(self, cache: Path) -> str:
        return ""


def check(batch: ImageBatch, volumes: SyntheticVolumes) -> None:
    """The pixels of a batch are those of the boxes that its own images' plan asks for."""
    assert torch.equal(batch.plan.index, batch.index)
    assert torch.equal(batch.sizes, volumes.sizes(batch.index))
    assert torch.equal(batch.spacing, volumes.spacing(batch.index))  # type: ignore[arg-type]
    assert torch.equal(batch.plan.spacing, batch.spacing)
    expected = Corners(batch.index, int(batch.epoch), None).boxes(batch.sizes)
    assert torch.equal(batch.boxes, expected)  # type: ignore[arg-type]
    assert batch.pixels.shape[1:] == (5, 5, 5, 1)
    for pixels, position, box in zip(batch.pixels, batch.index.tolist(), expected.tolist(), strict=True):
        assert np.array_equal(pixels.numpy(), box_of(volumes.read(position), box))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("decodes", [True, False])
def test_only_the_boxes_of_the_plan_are_read(decodes: bool, workers: int) -> None:
    volumes = SyntheticVolumes(40, size=SIZE)
    source = FailingVolumes(volumes) if decodes else volumes
    # More images than a worker reads at a time
    labels = VolumeLabels(volumes, (3, 4, 5))
    options: Any = {"batch_size": 36, "seed": 3, "max_steps": 3, "workers": workers, "extras": {"regions": labels}}
    batches = list(ImageBatches(source, draw=draw, **options))
    whole = list(ImageBatches(source, **options))
    for step, (batch, plain) in enumerate(zip(batches, whole, strict=True)):
        check(batch, volumes)
        assert torch.equal(batch.index, permute(torch.arange(36), 40, seed=3, epoch=step))
        assert torch.equal(batch.index, plain.index) and plain.plan is None and plain.boxes is None
        assert torch.equal(batch.extras["regions"], labels.gather(batch.index))
        for pixels, box, image in zip(batch.pixels, batch.boxes.tolist(), plain.pixels, strict=True):  # type: ignore[union-attr]
            assert torch.equal(pixels, box_of(image, box))


@pytest.mark.parametrize("workers", [0, 2])
def test_what_replaces_a_corrupt_image_has_its_own_plan(workers: int) -> None:
    volumes = SyntheticVolumes(200, size=(8, 8, 8))
    source = FailingVolumes(volumes, broken=(3, 77), known=(120,))
    source.broken = (3,)
    loader = ImageBatches(source, batch_size=50, seed=0, max_steps=8, workers=workers, draw=draw)
    named: list[str] = []
    for step, batch in enumerate(loader):
        check(batch, volumes)
        epoch, first = divmod(step, 4)
        order = permute(torch.arange(50 * first, 50 * first + 50), 200, seed=0, epoch=epoch)
        assert torch.equal(batch.index, torch.where((order == 3) | (order == 120), order + 1, order))
        named += batch.corrupt
    assert named == [volumes.names(3)]
    assert set(loader.corrupt) == {volumes.names(3), volumes.names(120)}


def test_a_source_that_reads_whole_images_draws_nothing_beforehand(tmp_path: Path) -> None:
    class Whole(FailingVolumes):
        reads_boxes = False

    def refuse(*_: Any) -> Corners:
        raise AssertionError

    volumes = SyntheticVolumes(4, size=SIZE)
    (batch,) = ImageBatches(Whole(volumes), batch_size=4, seed=0, max_steps=1, draw=refuse)
    assert batch.plan is None and batch.boxes is None


def test_a_pass_over_all_images_draws_its_own_views() -> None:
    volumes = SyntheticVolumes(7, size=SIZE)
    batches = ImageBatches(volumes, batch_size=3, seed=0, max_steps=1, draw=draw)
    assert all(batch.plan is None for batch in batches.each_image())
    seen = list(batches.each_image(draw))
    assert torch.cat([batch.index for batch in seen]).tolist() == list(range(7))
    for batch in seen:
        check(batch, volumes)


def test_views_of_boxes_are_those_of_whole_volumes() -> None:
    """The views that training makes, with pixels read in boxes and read whole."""
    volumes = SyntheticVolumes(12, size=(16, 32, 32))
    crop = Crop(scale=(0.2, 0.6), rotation=20)
    maker = ViewMaker({"a": RandomView(crop), "b": RandomView(crop, size=0.5)}, (8, 16, 16), 5, volumes.spec)
    options: Any = {"batch_size": 4, "seed": 5, "epochs": 2}
    less = 0
    for boxes, whole in zip(
        ImageBatches(volumes, draw=maker.draw, **options), ImageBatches(volumes, **options), strict=True
    ):
        assert boxes.boxes is not None and whole.boxes is None and torch.equal(boxes.index, whole.index)
        less += whole.pixels.numel() - boxes.pixels.numel()
        made, expected = maker(boxes), maker(whole)
        for name in ("a", "b"):
            assert torch.equal(made[name].map, expected[name].map)
            torch.testing.assert_close(made[name].pixels, expected[name].pixels, atol=1e-5, rtol=0)
    assert less > 0


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_gpu)])
def test_views_of_boxes_are_those_of_whole_packed_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (60 + 5 * k, 80, 3), dtype=np.uint8) for k in range(6)]
    path = write_store(tmp_path / "s.safetensors", images, map(str, range(6)), PixelSpec())
    whole = open_store(path).to(device)
    monkeypatch.setattr(packed, "_LARGE", 1000)
    store = open_store(path).to(device)
    assert store.reads_boxes and not whole.reads_boxes
    maker = ViewMaker({"view": Augment(scale=(0.05, 0.2)).random_view()}, 24, seed=1)
    options: Any = {"batch_size": 6, "seed": 1, "epochs": 2, "draw": maker.draw}
    for one, other in zip(ImageBatches(store, **options), ImageBatches(whole, **options), strict=True):
        assert one.pixels.numel() < other.pixels.numel() and other.plan is None
        torch.testing.assert_close(maker(one)["view"].pixels, maker(other)["view"].pixels, atol=1e-4, rtol=0)
