"""The picture of several detectors, and the colors of objects."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from densepath.analysis import show_detections as module
from densepath.analysis.show_detections import show_detections
from densepath.annotations.coco_writing import write_coco
from densepath.core.errors import UserError
from densepath.transfer.detection.detector_file import DetectorNotes, save_detector
from densepath.transfer.detection.object_colors import PALETTE, color_numbers, color_of, near_boxes, neighbors
from densepath.transfer.detection.predictor import load_detector


def test_neighbors_are_objects_within_a_few_pixels() -> None:
    labels = np.zeros((30, 60), np.int32)
    labels[2:10, 2:10] = 7
    labels[2:10, 10:20] = 3  # touches 7
    labels[13:20, 4:6] = 9  # three pixels of background below 7
    labels[12:20, 23:28] = 4  # diagonal to 3
    labels[2:10, 50:58] = 5
    labels[26, 6] = 8  # six pixels below 9
    assert neighbors(labels) == {3: {7, 4}, 4: {3}, 5: set(), 7: {3, 9}, 8: set(), 9: {7}}
    assert neighbors(labels.T.copy()) == neighbors(labels) == neighbors(labels[::-1, ::-1])


@pytest.mark.parametrize("seed", range(3))
def test_neighbors_are_those_of_all_pairs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = np.where(rng.random((40, 40)) < 0.02, rng.integers(1, 30, (40, 40)), 0)
    places = {label: np.argwhere(labels == label) for label in np.unique(labels[labels > 0]).tolist()}
    apart = {(a, b): np.abs(places[a][:, None] - places[b]).max(-1).min() for a in places for b in places}
    assert neighbors(labels) == {a: {b for b in places if b != a and apart[a, b] <= 4} for a in places}
    boxes = [(*corner, *(corner + size)) for corner, size in rng.integers(1, 90, (60, 2, 2)) // [[1], [5]]]
    boxes = [tuple(map(int, box)) for box in boxes]
    gaps = [[max(a[0] - b[2], b[0] - a[2], a[1] - b[3], b[1] - a[3]) for b in boxes] for a in boxes]
    near = near_boxes(boxes)
    assert near == {k: {m for m, gap in enumerate(row) if gap < 4 and m != k} for k, row in enumerate(gaps)}


def test_many_objects_are_colored_in_linear_time() -> None:
    """A grid of 40,000 objects, each with eight neighbors."""
    boxes = [(20 * y, 20 * x, 20 * y + 18, 20 * x + 18) for y in range(200) for x in range(200)]
    start = time.process_time()
    numbers = color_numbers(near := near_boxes(boxes))
    assert time.process_time() - start < 20
    assert len(near[201]) == 8
    assert all(numbers[key] not in {numbers[other] for other in others} for key, others in near.items())


@pytest.mark.parametrize("seed", range(4))
def test_objects_that_touch_never_share_a_color(seed: int) -> None:
    """A map without background, all of one preferred color."""
    rng = np.random.default_rng(seed)
    centers = rng.uniform(0, 96, (60, 2))
    grid = np.stack(np.meshgrid(np.arange(96), np.arange(96), indexing="ij"), -1)
    labels = np.square(grid[:, :, None] - centers).sum(-1).argmin(-1) + 1
    near = neighbors(labels)
    for preferred in (None, dict.fromkeys(near, 2)):
        numbers = color_numbers(near, preferred)
        assert set(numbers) == set(near)
        for label, others in near.items():
            assert all(color_of(numbers[label]) != color_of(numbers[other]) for other in others)
    assert list(numbers.values()).count(2) > 5
    everyone = {key: set(range(20)) - {key} for key in range(20)}  # more neighbors than colors
    assert len({color_of(number) for number in color_numbers(everyone).values()}) == 20
    assert set(color_numbers({key: set() for key in range(7)}).values()) == set(range(len(PALETTE)))


def test_matched_objects_keep_their_color_and_missed_ones_are_dashed() -> None:
    truth = np.zeros((240, 480), np.int32)
    truth[20:100, 20:100], truth[20:100, 200:300], truth[150:230, 20:100] = 1, 2, 3
    found = np.zeros_like(truth)
    found[22:100, 20:100] = 5  # the first one
    found[150:200, 400:460] = 6  # a false one
    image = np.full((240, 480, 3), 128, np.uint8)
    (true, head), (drawn, line) = module._row(image, "a", truth, [found])
    assert head == "a: 3 objects"
    assert line.endswith("2 missed, 1 false") and line.startswith("F1 40 ")
    pixels, of_truth = np.asarray(drawn), np.asarray(true)
    assert tuple(pixels[60, 20]) == tuple(of_truth[60, 20]) in PALETTE
    for rows, columns in ((slice(20, 100), slice(200, 203)), (slice(150, 230), slice(20, 23))):
        edge = {tuple(pixel) for pixel in pixels[rows, columns].reshape(-1, 3).tolist()}
        assert edge == {(255, 0, 0), (255, 255, 255)}
    assert not (pixels[:, 20:101] == (255, 0, 0)).all(-1)[:110].any()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    labels = np.zeros((48, 64), np.int32)
    labels[10:30, 20:40] = 1
    pictures = [(f"{k}", np.full((48, 64, 3), 90 * k, np.uint8), labels) for k in range(3)]
    write_coco(tmp_path / "data", {"train": [], "test": pictures})
    return tmp_path / "data"


def run(folder: Path, detector: str = "mask_rcnn_fpn_small") -> str:
    torch.manual_seed(0)
    pixels = ((0.5,) * 3, (0.2,) * 3)
    notes = DetectorNotes(detector, "test_resnet", (1,), ("gland",), 64, *pixels, (8, 16, 32, 48, 64), 6)
    save_detector(folder / "exported" / "detector.safetensors", notes.build(), notes)
    return str(folder)


def test_a_row_for_each_image_and_a_column_for_each_run(data: Path, tmp_path: Path) -> None:
    runs = [run(tmp_path / "a"), run(tmp_path / "b")]
    options = {"data": data, "score": 0.0, "devices": "cpu"}
    one = Image.open(show_detections(runs=runs[:1], out=tmp_path / "one.png", count=1, **options))
    more = Image.open(show_detections(runs=runs, out=tmp_path / "more.png", count=9, **options))
    assert more.width / one.width == pytest.approx(3 / 2, rel=0.02)
    assert more.height / one.height == pytest.approx(3, rel=0.2)


def test_what_cannot_be_drawn_is_refused(data: Path, tmp_path: Path) -> None:
    good, boxes = run(tmp_path / "a"), run(tmp_path / "boxes", "retinanet_small")
    for options, says in (
        ({"runs": [boxes]}, "boxes only"),
        ({"runs": [good, good]}, "twice"),
        ({"runs": ["nothing"]}, "no trained detector"),
        ({"count": 0}, "count is 0"),
        ({"score": 2.0}, "from 0 to 1"),
        ({"out": tmp_path / "p.jpg"}, "png"),
        ({"out": data / "test" / "p.png"}, "would lie among the images"),
    ):
        given = {"data": data, "runs": [good], "out": tmp_path / "p.png", "devices": "cpu"} | options
        with pytest.raises(UserError, match=says):
            show_detections(**given)
    assert not (tmp_path / "p.png").exists()


def test_turned_images_are_drawn_as_the_detector_was_trained(data: Path, tmp_path: Path) -> None:
    """Images of 12 bits, which are drawn with their own range, and are turned by half."""
    for path in (data / "test").iterdir():
        pixels = np.full((48, 64), 4000, np.uint16)
        tifffile.imwrite(path, pixels, extratags=[(274, 3, 1, 3, True)], photometric="minisblack")
    options = {"data": data, "score": 0.9, "devices": "cpu", "count": 1}
    with pytest.raises(UserError, match="say with --orientation"):
        show_detections(runs=[run(tmp_path / "a")], out=tmp_path / "a.png", **options)
    loaded = load_detector(run(tmp_path / "b"))
    notes = replace(loaded.notes, orientation="viewed")
    save_detector(tmp_path / "b" / "exported" / "detector.safetensors", loaded.detector, notes)
    for how, given in (("viewed", {}), ("stored", {"orientation": "stored"})):
        given = options | given | {"runs": [str(tmp_path / "b")], "out": tmp_path / f"{how}.png"}
        picture = Image.open(show_detections(**given))
        assert np.asarray(picture.convert("L"))[200:].max() > 240 and picture.width > 900
