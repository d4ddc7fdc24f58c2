"""The network, the image reader and the encoder of detections run in parallel, and stop together."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from densepath.annotations.coco import CocoImages, open_split
from densepath.annotations.coco_writing import write_coco
from densepath.core.errors import UserError
from densepath.core.output_names import output_names
from densepath.transfer.detection.evaluation import evaluate

IMAGES = 4


@pytest.fixture
def images(tmp_path: Path) -> CocoImages:
    """Squares, each further right than in the previous image."""
    scenes = []
    for i in range(IMAGES):
        labels = np.zeros((40, 64), np.int32)
        labels[10:30, 10 * i : 10 * i + 20] = 1
        scenes.append((f"scene{i}", np.full((40, 64, 3), 50 * i, np.uint8), labels))
    write_coco(tmp_path / "data", {"train": scenes, "test": scenes})
    return open_split(tmp_path / "data", "test")


def find(sample: dict[str, Any]) -> list[float]:
    """The boxes, unchanged."""
    boxes: list[float] = sample["boxes"].tolist()
    return boxes


def encode(sample: dict[str, Any], found: list[Any]) -> list[dict[str, Any]]:
    return [
        {"image_id": sample["image_id"], "category_id": 1, "score": 0.5, "bbox": [x1, y1, x2 - x1, y2 - y1]}
        for x1, y1, x2, y2 in found
    ]


def test_results_and_pictures_belong_to_their_images(images: CocoImages, tmp_path: Path) -> None:
    metrics = evaluate(find, encode, images, tmp_path / "out", masks=False, pictures=2)
    assert metrics == {"box_ap": 100.0, "box_ap50": 100.0, "box_ap75": 100.0}
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == {"scale": "percent", **metrics}
    found = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert [result["bbox"] for result in found] == [[10 * i, 10, 20, 20] for i in range(IMAGES)]
    drawn = sorted(path.name for path in (tmp_path / "out" / "pictures").iterdir())
    assert drawn == ["scene0.png", f"scene{IMAGES - 1}.png"]


def test_detections_are_encoded_while_the_network_processes_the_next_image(images: CocoImages, tmp_path: Path) -> None:
    looks, encodes = ([threading.Event() for _ in range(IMAGES + 1)] for _ in range(2))
    encodes[0].set()
    looks[IMAGES].set()
    threads: set[threading.Thread] = set()

    def slow_find(sample: dict[str, Any]) -> list[float]:
        i = int(sample["name"][5])
        threads.add(threading.current_thread())
        looks[i].set()
        assert encodes[i].wait(10)  # of the image before
        return find(sample)

    def slow_encode(sample: dict[str, Any], found: list[Any]) -> list[dict[str, Any]]:
        i = int(sample["name"][5])
        encodes[i + 1].set()
        assert looks[i + 1].wait(10)
        return encode(sample, found)

    assert evaluate(slow_find, slow_encode, images, tmp_path / "out", masks=False)["box_ap"] == 100
    # Ctrl-C reaches only the main thread: another one would finish its image, which takes Segment Anything minutes.
    assert threads == {threading.current_thread()}


def test_at_most_one_image_has_its_true_masks_in_memory(
    images: CocoImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = []
    decode = CocoImages._mask
    monkeypatch.setattr(CocoImages, "_mask", lambda self, *of: decoded.append(of) or decode(self, *of))

    def find_without(sample: dict[str, Any]) -> list[float]:
        assert sample["masks"].shape == (0, 40, 64)
        return find(sample)

    evaluate(find_without, encode, images, tmp_path / "out", masks=False, pictures=0)
    assert not decoded
    evaluate(find_without, encode, images, tmp_path / "out", masks=False, pictures=IMAGES)
    assert len(decoded) == IMAGES


@pytest.mark.parametrize("where", ["find", "encode", "image"])
def test_any_failure_is_raised_and_leaves_no_thread_and_no_file(where: str, images: CocoImages, tmp_path: Path) -> None:
    def fails(*_: Any) -> Any:
        raise UserError("no more")

    if where == "image":
        (tmp_path / "data" / "test" / "scene2.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    before = set(threading.enumerate())
    message = "scene2.png" if where == "image" else "no more"
    with pytest.raises(UserError, match=message):
        evaluate(
            fails if where == "find" else find,
            fails if where == "encode" else encode,
            images,
            tmp_path / "out",
            masks=False,
        )
    assert set(threading.enumerate()) <= before
    assert not (tmp_path / "out" / "metrics.json").exists()


def test_no_picture_overwrites_another_one() -> None:
    names = ["A/tile.png", "B/tile.png", "tile.png", "tile.jpg", "../other/x.png", "other/x.png", "/data/y.png"]
    files = [f"{name}.png" for name in output_names([Path(name) for name in names])]
    assert files[:4] == ["A/tile.png", "B/tile.png", "tile.png.png", "tile.jpg.png"]
    assert files[4:] == ["other/x.png.png", "other/x.png.2.png", "data/y.png"]
