"""Patches: classes follow pixels under every map, for images and for boxes of volumes; oversampling; the loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from densepath.sources.image_files import ImageFiles
from densepath.sources.loader import ImageBatches
from densepath.sources.volumes.open_store import open_volumes
from densepath.transfer.segment.config import Patches
from densepath.transfer.segment.legend import Legend
from densepath.transfer.segment.loss import segmentation_loss
from densepath.transfer.segment.patches import TRUTH, PatchMaker
from densepath.transfer.segment.truth import LabelMaps, Truth, VolumeLabels

from .conftest import write_store

LEGEND = Legend(("background", "a", "b"), (0, 50, 200), 0, regions=(("a", (1,)), ("b", (2,))))


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Grey images of several sizes that are their own label maps: blocks of the values 0, 50 and 200."""
    rng, paths = np.random.default_rng(0), []
    for k, (height, width) in enumerate(((40, 52), (33, 24), (20, 60))):
        blocks = rng.choice(np.array([0, 50, 200], np.uint8), (height // 4 + 1, width // 4 + 1))
        paths.append(tmp_path / f"{k}.png")
        Image.fromarray(np.kron(blocks, np.ones((4, 4), np.uint8))[:height, :width]).save(paths[-1])
    return paths


@pytest.mark.parametrize(
    "options",
    [{}, {"vertical_flip": 0.5, "quarter_turns": True}, {"zoom": (0.5, 0.5)}, {"rotation": 20.0, "zoom": (0.7, 0.9)}],
)
def test_classes_follow_pixels(files: list[Path], options: dict[str, Any]) -> None:
    images = ImageFiles(files)
    truth, spec = Truth(LabelMaps(files), LEGEND), images.spec
    patches = PatchMaker(Patches(**options), (28, 28), 3, spec, truth, 0.3)
    batches = ImageBatches(images, batch_size=3, seed=0, epochs=4, draw=patches.draw, extras={TRUTH: truth})
    for batch in batches:
        pixels, classes = patches(batch)
        mean, std = spec.mean[0], spec.std[0]
        values = (pixels[:, 0] * std + mean) * 255
        expected = torch.tensor([0.0, 50.0, 200.0])[classes.clamp(min=0)]
        inside = classes >= 0
        assert (pixels[:, 0][~inside] == 0).all()  # beyond an image
        same = (values - expected).abs() < 0.5
        smooth = "zoom" in options or "rotation" in options  # bilinear pixels between two blocks lie between them
        assert same[inside].float().mean() > (0.55 if smooth else 0.9999)
        again = PatchMaker(Patches(**options), (28, 28), 3, spec, truth, 0.3)(batch)
        assert torch.equal(again[0], pixels) and torch.equal(again[1], classes)


def test_the_brightness_of_grey_patches_is_changed(files: list[Path]) -> None:
    """The part of the color jitter that needs no colors."""
    images, truth = ImageFiles(files), Truth(LabelMaps(files), LEGEND)
    batch = next(iter(ImageBatches(images, batch_size=3, seed=0, epochs=1, extras={TRUTH: truth})))
    options = ({}, {"jitter": 1.0, "saturation": 0.0, "hue": 0.0})
    plain, changed = (PatchMaker(Patches(**each), (28, 28), 3, images.spec, truth)(batch) for each in options)
    assert torch.equal(plain[1], changed[1]) and not torch.equal(plain[0], changed[0])


def test_patches_of_any_zoom_reach_all_borders(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((60, 60), np.uint8)).save(tmp_path / "a.png")
    truth = Truth(LabelMaps([tmp_path / "a.png"]), LEGEND)
    patches = PatchMaker(Patches(zoom=(0.5, 0.5)), (32, 32), 0, ImageFiles([tmp_path / "a.png"]).spec, truth)
    sizes = torch.tensor([[60, 60]])
    maps = torch.cat([patches.draw(torch.tensor([0]), sizes, epoch=e).views["image"].map for e in range(200)])
    low, high = (maps[..., -1] + side * maps[..., :-1].abs().sum(-1) for side in (-1, 1))
    assert (low > -1 - 1e-5).all() and (high < 1 + 1e-5).all()
    assert (low.amin(0) < -0.95).all() and (high.amax(0) > 0.95).all()


def test_oversampled_patches_are_centered_on_a_class(tmp_path: Path) -> None:
    labels = np.zeros((80, 90), np.uint8)
    labels[70:72, 3:5], labels[10, 80] = 50, 200
    Image.fromarray(labels).save(tmp_path / "a.png")
    images = ImageFiles([tmp_path / "a.png"])
    truth = Truth(LabelMaps([tmp_path / "a.png"]), LEGEND)
    patches = PatchMaker(Patches(quarter_turns=True), (16, 16), 0, images.spec, truth, 1.0)
    seen = [patches(b)[1] for b in ImageBatches(images, batch_size=1, seed=0, epochs=40, extras={TRUTH: truth})]
    counts = [sum(bool((classes == k).any()) for classes in seen) for k in (1, 2)]
    assert sum(counts) >= 40 and min(counts) > 8  # each class as often, though one has a single pixel
    assert all((classes >= 0).all() for classes in seen)  # moved inside


def test_the_parts_of_a_source_keep_its_maps_together(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    size = LabelMaps(files).read(0).size
    room = 16 * size  # a tenth of it takes the first map and the last
    monkeypatch.setattr("densepath.transfer.segment.truth.available_memory", lambda: room)
    truth, read, plain = Truth(LabelMaps(files), LEGEND), [], LabelMaps.read
    monkeypatch.setattr(LabelMaps, "read", lambda maps, k: read.append(maps.paths[k]) or plain(maps, k))
    parts = [truth.take(np.array([0, 2])), truth.take(np.array([2, 1, 0])).take(np.array([1, 0])), truth]
    found = [part.read(k).tolist() for part, count in zip(parts, (2, 2, 3), strict=True) for k in range(count)]
    assert found == [LEGEND.classes_of(plain(LabelMaps(files), k)).tolist() for k in (0, 2, 1, 2, 0, 1, 2)]
    assert read == [files[k] for k in (0, 2, 1, 1)]


def test_boxes_of_volumes_give_the_patches_of_whole_volumes(tmp_path: Path) -> None:
    store = open_volumes(write_store(tmp_path, 3))
    legend = Legend(("background", "ball", "core"), (0, 1, 4), 0, regions=(("ball", (1,)), ("core", (2,))))
    truth = Truth(VolumeLabels(store), legend)
    options = Patches(flip=0.5, depth_flip=0.5, rotation=15.0)
    patches = PatchMaker(options, (10, 24, 12), 1, store.spec, truth, 0.5)
    given: dict[str, Any] = {"batch_size": 3, "seed": 0, "epochs": 2, "extras": {TRUTH: truth}}
    for boxed, plain in zip(ImageBatches(store, draw=patches.draw, **given), ImageBatches(store, **given), strict=True):
        assert boxed.boxes is not None and plain.boxes is None
        one, other = patches(boxed), patches(plain)
        torch.testing.assert_close(one[0], other[0], atol=1e-4, rtol=0)
        assert torch.equal(one[1], other[1]) and set(one[1].unique().tolist()) == {-1, 0, 1, 2}


def test_loss_is_that_of_loops() -> None:
    torch.manual_seed(0)
    logits, truth = torch.randn(4, 3, 5, 6, dtype=torch.float64), torch.randint(-1, 3, (4, 5, 6))
    truth[1][truth[1] == 2] = 0  # an image without a class
    truth[2] = -1  # nothing is known
    found = []
    for z, t in zip(logits, truth, strict=True):
        chance = z.softmax(0)[:, t >= 0]
        t = t[t >= 0]
        if not len(t):
            found.append((0.0, 0.0))
            continue
        present = t.unique().tolist()
        shares = [2 * chance[k, t == k].sum() / (chance[k].sum() + (t == k).sum()) for k in present]
        entropy = -torch.stack([chance[k, i].log() for i, k in enumerate(t.tolist())]).mean()
        found.append((float(1 - sum(shares) / len(shares)), float(entropy)))
    dice, entropy = np.mean(found, axis=0)
    for kind, value in (("dice", dice), ("ce", entropy), ("dice_ce", dice + entropy)):
        assert float(segmentation_loss(logits, truth, kind)) == pytest.approx(value)  # type: ignore[arg-type]
        halves = [float(segmentation_loss(logits[h], truth[h], kind)) for h in (slice(2), slice(2, 4))]  # type: ignore
        assert np.mean(halves) == pytest.approx(value)  # of two processes
