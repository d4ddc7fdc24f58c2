"""Samples are a function of seed and step, and their preprocessing is exact."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from densepath.annotations.coco import CocoImages, open_split
from densepath.annotations.coco_writing import write_coco
from densepath.sources.pixel_source import PixelSpec
from densepath.training.recipes import load_recipe
from densepath.transfer.detection.samples import SampleBatch, TrainingBatches, into_detector, resized_shape
from densepath.transfer.detection.solver import make_solver

NO_CHANGE = PixelSpec(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> CocoImages:
    data = tmp_path_factory.mktemp("samples") / "data"
    rng = np.random.default_rng(0)
    samples = []
    for i in range(5):
        labels = np.zeros((48, 64), np.int32)
        labels[10 : 30 + i, 20:40] = 1
        samples.append((f"image{i}", rng.integers(0, 255, (48, 64, 3)).astype(np.uint8), labels))
    write_coco(data, {"train": samples, "test": samples})
    return open_split(data, "train")


def batches(images: CocoImages, **options: Any) -> TrainingBatches:
    wanted: dict[str, Any] = {"batch_size": 4, "total_steps": 6, "seed": 3, "sizes": (40, 50)} | options
    return TrainingBatches(images, **wanted)


def shown(run: TrainingBatches) -> list[list[tuple[int, int, bool]]]:
    return [[(s["position"], s["short_edge"], s["flip"]) for s in batch.samples] for batch in run]


def test_every_image_occurs_once_per_epoch_also_across_batches(images: CocoImages) -> None:
    order = [shown.position for batch in batches(images, total_steps=10).plan() for shown in batch]
    epochs = [order[k : k + 5] for k in range(0, 40, 5)]
    assert all(sorted(epoch) == [0, 1, 2, 3, 4] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_a_later_start_and_worker_processes_give_the_same_samples(images: CocoImages) -> None:
    whole = shown(batches(images))
    assert shown(batches(images, start_step=2)) == whole[2:]
    assert shown(batches(images, workers=2)) == whole
    assert shown(batches(images, total_steps=4).beyond(2)) == whole[4:]
    assert shown(batches(images, seed=4)) != whole


def test_processes_share_the_batch_of_one_process(images: CocoImages) -> None:
    shares = [shown(batches(images, rank=rank, world_size=2)) for rank in range(2)]
    assert [first + second for first, second in zip(*shares, strict=True)] == shown(batches(images))


def test_a_crop_equals_the_part_of_the_sample(images: CocoImages) -> None:
    whole = images[2]
    assert images.size(2) == whole["image"].shape[:2] == (48, 64)
    for left, top, side in ((0, 0, 48), (25, 13, 12), (36, 28, 30), (45, 2, 8), (39, 31, 2)):
        part = images.crop(2, left, top, side)
        window = np.s_[top : top + side, left : left + side]
        assert np.array_equal(part["image"], whole["image"][window])
        seen = whole["masks"][0][window]
        assert len(part["masks"]) == len(part["boxes"]) == len(part["labels"]) == seen.any()
        if seen.any():
            assert np.array_equal(part["masks"][0], seen)
            rows, columns = seen.nonzero()
            assert part["boxes"].tolist() == [[columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]]
        assert part["boxes"].shape[1] == 4 and part["masks"].shape[1:] == part["image"].shape[:2]


def test_crops_are_at_any_position_and_equal_in_workers(images: CocoImages) -> None:
    run = batches(images, crop=32, total_steps=40)
    samples = [sample for batch in run for sample in batch.samples]
    assert {tuple(sample["image"].shape) for sample in samples} == {(32, 32, 3)}
    again = [s for batch in batches(images, crop=32, total_steps=40, start_step=35, workers=1) for s in batch.samples]
    assert all(torch.equal(a["image"], b["image"]) for a, b in zip(samples[-20:], again, strict=True))
    places = np.array([sample["place"] for sample in samples])
    assert abs(places.mean(0) - 0.5).max() < 3.3 / np.sqrt(12 * len(samples)) and (places >= 0).all()
    for sample in samples:
        left, top = int(sample["place"][0] * 33), int(sample["place"][1] * 17)
        expected = images[sample["position"]]["image"][top : top + 32, left : left + 32]
        assert np.array_equal(sample["image"].numpy(), expected)


def test_an_image_smaller_than_the_crop_is_used_whole(images: CocoImages) -> None:
    batch = next(iter(batches(images, crop=100)))
    assert {tuple(sample["image"].shape) for sample in batch.samples} == {(48, 64, 3)}


def test_sizes_and_flips_are_drawn_uniformly(images: CocoImages) -> None:
    drawn = [shown for batch in batches(images, total_steps=100).plan() for shown in batch]
    edges = torch.tensor([shown.short_edge for shown in drawn])
    assert edges.min() == 40 and edges.max() == 50
    counts = torch.bincount(edges - 40, minlength=11)
    assert ((counts - 400 / 11) ** 2 / (400 / 11)).sum() < 29.6  # chi-squared, 10 degrees of freedom, p = 0.001
    assert abs(sum(shown.flip for shown in drawn) - 200) < 33  # 3.3 standard deviations


@pytest.mark.parametrize(
    ("height", "width", "edge", "expected"),
    [(522, 775, 400, (400, 594)), (775, 522, 400, (594, 400)), (100, 1000, 200, (133, 1333)), (50, 50, 99, (99, 99))],
)
def test_the_short_edge_is_reached_unless_the_long_one_would_exceed_1333(
    height: int, width: int, edge: int, expected: tuple[int, int]
) -> None:
    assert resized_shape(height, width, edge) == expected


def sample(images: CocoImages, edge: int, flip: bool) -> dict[str, Any]:
    return images[0] | {"short_edge": edge, "flip": flip}


def test_an_unscaled_image_arrives_unchanged_and_padded_with_zeros(images: CocoImages) -> None:
    batch = SampleBatch([sample(images, 48, False), sample(images, 96, False)], torch.tensor([0, 0]))
    arrived, targets = into_detector(batch.samples, NO_CHANGE, CPU)
    assert arrived.tensors.shape == (2, 3, 96, 128)
    assert arrived.image_sizes == [(48, 64), (96, 128)]
    pixels = torch.from_numpy(images[0]["image"]).permute(2, 0, 1) / 255
    torch.testing.assert_close(arrived.tensors[0, :, :48, :64], pixels)
    assert arrived.tensors[0, :, 48:].abs().sum() == arrived.tensors[0, :, :, 64:].abs().sum() == 0
    assert torch.equal(targets[0]["boxes"], torch.tensor([[20.0, 10.0, 40.0, 30.0]]))
    assert torch.equal(targets[1]["boxes"], 2 * targets[0]["boxes"])


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("edge", [33, 48, 77])
def test_boxes_stay_the_bounding_boxes_of_the_masks(images: CocoImages, edge: int, flip: bool) -> None:
    _, (target,) = into_detector([sample(images, edge, flip)], NO_CHANGE, CPU)
    rows, columns = target["masks"][0].nonzero().T
    bounds = torch.stack((columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)).float()
    torch.testing.assert_close(target["boxes"][0] * target["scale"], bounds)
    assert columns.min() == (24 if flip else 20)


def test_a_flipped_image_is_mirrored_and_colors_are_normalized(images: CocoImages) -> None:
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.1, 0.3)
    (plain, _), (mirrored, _) = (into_detector([sample(images, 48, f)], NO_CHANGE, CPU) for f in (False, True))
    normalized, _ = into_detector([sample(images, 48, False)], PixelSpec(mean=mean, std=std), CPU)
    inside = plain.tensors[..., :48, :64]
    assert torch.equal(mirrored.tensors[..., :48, :64], inside.flip(-1))
    expected = (inside - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    torch.testing.assert_close(normalized.tensors[..., :48, :64], expected)


def test_schedules_equal_the_paper() -> None:
    for name, steps in (("0.5x", 2500), ("1x", 5000), ("2x", 10000), ("3x", 15000), ("5x", 25000)):
        solver = make_solver(name)
        assert (solver.steps, solver.warmup, solver.drops, solver.lr) == (steps, 1000, (steps * 4 // 5,), 0.02)
    rates = [make_solver("1x").factor(step) for step in (0, 500, 1000, 3999, 4000, 4999)]
    assert rates == pytest.approx([0.001, 0.5005, 1.0, 1.0, 0.1, 0.1])


def test_max_steps_scales_warmup_and_drops_and_batch_size_scales_the_learning_rate() -> None:
    short = make_solver("1x", max_steps=100, drops=(0.6, 0.9), batch_size=4)
    assert (short.steps, short.warmup, short.drops, short.lr) == (100, 20, (60, 90), 0.005)
    assert make_solver("1x", max_steps=20000).warmup == 1000
    assert [make_solver(name, base_steps=300).warmup for name in ("0.5x", "1x", "5x")] == [60] * 3
    assert make_solver("1x", max_steps=100, warmup_steps=3, lr=0.1, batch_size=4).lr == 0.1
    assert make_solver("1x", batch_size=8, base_lr=0.01).lr == 0.005


@pytest.mark.parametrize(
    ("recipe", "name", "steps", "drops"),
    [
        ("glas", "0.5x", 2500, (2000,)),
        ("glas", "1x", 5000, (4000,)),
        ("glas", "5x", 25000, (20000,)),
        ("crag", "0.5x", 7500, (5000, 6500)),
        ("crag", "1x", 15000, (10000, 13000)),
        ("crag", "2x", 30000, (20000, 26000)),
        ("crag", "3x", 45000, (30000, 39000)),
        ("crag", "5x", 75000, (50000, 65000)),
    ],
)
def test_recipes_have_the_steps_of_the_paper(recipe: str, name: str, steps: int, drops: tuple[int, ...]) -> None:
    options = load_recipe(recipe, "detect")
    solver = make_solver(
        name, drops=options["drops"], batch_size=options["batch_size"], base_steps=options["base_steps"]
    )
    assert (solver.steps, solver.drops, solver.lr, solver.warmup) == (steps, drops, 0.02, 1000)
    sizes = {"glas": ([400, 522], 522), "crag": ([768, 1024], 768)}
    assert (options["train_size"], options["test_size"]) == sizes[recipe]
