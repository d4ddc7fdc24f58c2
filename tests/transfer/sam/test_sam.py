"""Segment Anything with prompts and automatic masks: a tiny random model, compared with its outputs step by step."""

from __future__ import annotations

import json
import shutil
import sys
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from pycocotools import mask as rle
from torch import Tensor

from densepath.annotations.coco import open_split
from densepath.annotations.coco_writing import write_coco
from densepath.core.errors import UserError
from densepath.core.locks import sole_writer
from densepath.transfer.detection.average_precision import average_precision
from densepath.transfer.detection.instances import decode_mask
from densepath.transfer.sam.sam import sam
from densepath.transfer.sam.segment_anything import SegmentAnything

transformers = pytest.importorskip("transformers")
SIDE = 64  # pixels: what the model of ``tiny_sam`` sees
HEIGHT, WIDTH = 36, 48  # of the images, which become 48 x 64


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sam") / "data"
    scenes = []
    for number in range(2):
        pixels = np.random.default_rng(number).integers(150, 250, (HEIGHT, WIDTH, 3)).astype(np.uint8)
        labels = np.zeros((HEIGHT, WIDTH), np.int32)
        for i, (top, left) in enumerate([(3, 4), (5 + number, 25), (20, 8)], start=1):
            labels[top : top + 11, left : left + 15] = i
        pixels[labels > 0] //= 3
        scenes.append((f"scene{number}", pixels, labels))
    write_coco(folder, {"train": scenes, "test": scenes})
    return folder


@pytest.fixture(scope="module")
def model(tiny_sam: Path) -> SegmentAnything:
    return SegmentAnything(tiny_sam, torch.device("cpu"))


def outputs(model: SegmentAnything, image: np.ndarray, **prompts: Tensor) -> tuple[Tensor, Tensor]:
    """The logits (N, 3, H, W) and predicted IoUs (N, 3) for prompts in the model's own pixels, step by step."""
    scaled = Image.fromarray(image).resize((SIDE, SIDE * HEIGHT // WIDTH), Image.Resampling.BILINEAR)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = (torch.from_numpy(np.array(scaled)).float() / 255 - mean) / std
    padded = F.pad(pixels.permute(2, 0, 1), (0, 0, 0, SIDE - SIDE * HEIGHT // WIDTH))
    with torch.no_grad():
        found = model.model(pixel_values=padded[None], **prompts)
    return whole(found.pred_masks[0]), found.iou_scores[0]


def whole(logits: Tensor) -> Tensor:
    """The model's masks (N, 3, 16, 16) at the image's resolution."""
    padded = F.interpolate(logits, (SIDE, SIDE), mode="bilinear")
    return F.interpolate(padded[..., : SIDE * HEIGHT // WIDTH, :], (HEIGHT, WIDTH), mode="bilinear")


@pytest.mark.parametrize("prompt", ["point", "box"])
def test_prompts_are_scaled_to_the_model_and_the_best_of_three_masks_is_returned(
    prompt: Any, model: SegmentAnything, data: Path
) -> None:
    sample = open_split(data, "test")[0]
    boxes = torch.from_numpy(sample["boxes"]) * SIDE / WIDTH
    if prompt == "box":
        logits, scores = outputs(model, sample["image"], input_boxes=boxes[None])
    else:
        centers = torch.stack([(boxes[:, 0] + boxes[:, 2]) / 2, (boxes[:, 1] + boxes[:, 3]) / 2], dim=1)
        logits, scores = outputs(model, sample["image"], input_points=centers[None, :, None])
    found = list(model.prompted(sample["image"], sample["boxes"], prompt))
    assert len(found) == len(boxes) == 3
    for (mask, score), three, predicted in zip(found, logits, scores, strict=True):
        best = int(predicted.argmax())
        assert score == pytest.approx(predicted[best].item(), abs=2e-3)
        assert mask.shape == (HEIGHT, WIDTH) and 0 < mask.sum() < mask.size
        assert (mask == (three[best] > 0).numpy()).mean() > 0.99  # the processor resizes by another library
    assert len({mask.tobytes() for mask, _ in found}) == 3
    assert list(model.prompted(sample["image"], sample["boxes"][:0], prompt)) == []


def test_more_prompts_than_one_batch_are_answered_in_order(
    model: SegmentAnything, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = open_split(data, "test")[0]
    together = list(model.prompted(sample["image"], sample["boxes"], "box"))
    monkeypatch.setattr("densepath.transfer.sam.segment_anything._AT_ONCE", 2)
    parts = list(model.prompted(sample["image"], sample["boxes"], "box"))
    assert [score for _, score in parts] == pytest.approx([score for _, score in together])
    assert all((one == two).all() for (one, _), (two, _) in zip(parts, together, strict=True))


def overlap(one: list[float], other: list[float]) -> float:
    """IoU of boxes x1 y1 x2 y2."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    common = max(width, 0) * max(height, 0)
    areas = [(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in (one, other)]
    return common / (sum(areas) - common) if common else 0.0


def discs(points: Tensor) -> tuple[Tensor, Tensor]:
    """Three discs around each point (N, 2): their logits (N, 3, 16, 16) and IoUs (N, 3), some higher, some lower."""
    x, y = points.round(decimals=2).unbind(1)
    centers = (torch.arange(16) + 0.5) * SIDE / 16
    distance = torch.hypot(centers - x[:, None, None], centers[:, None] - y[:, None, None])
    shade = (0.731 * x + 1.37 * y)[:, None] + torch.tensor([0.41, 0.83, 0.17])
    steepness = 0.2 + 3 * (7 * shade).frac()
    radius = torch.tensor([6.0, 12.0, 28.0])
    return steepness[..., None, None] * (radius[:, None, None] - distance[:, None]), 0.8 + 0.2 * shade.frac()


def test_automatic_masks_pass_both_filters_and_non_maximum_suppression(
    model: SegmentAnything, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forward(input_points: Tensor, **others: Tensor) -> dict[str, Tensor]:
        logits, scores = discs(input_points[0, :, 0])
        return {"pred_masks": logits[None], "iou_scores": scores[None]}

    monkeypatch.setattr(model.model, "forward", forward)
    image = open_split(data, "test")[0]["image"]
    steps = [(i + 0.5) / 9 for i in range(9)]  # more points than the decoder takes at once
    logits, scores = discs(torch.tensor([[x * SIDE, y * SIDE * HEIGHT / WIDTH] for y in steps for x in steps]))
    passed = []
    for mask, score in zip(whole(logits).flatten(0, 1), scores.flatten().tolist(), strict=True):
        inner, outer = int((mask > 1).sum()), int((mask > -1).sum())
        if score > 0.9 and outer and inner / outer > 0.75:
            passed.append((score, (mask > 0).numpy()))
    kept: list[tuple[float, list[float], np.ndarray]] = []
    for score, mask in sorted(passed, key=lambda one: -one[0]):
        rows, columns = mask.nonzero()
        box = [float(v) for v in (columns.min(), rows.min(), columns.max(), rows.max())]
        if all(overlap(box, other) <= 0.7 for _, other, _ in kept):
            kept.append((score, box, mask))
    assert 3 < len(kept) < len(passed) < 3 * 81 / 2

    options: dict[str, Any] = {"points_per_side": 9, "stability": 0.75, "box_nms": 0.7}
    found = list(model.everything(image, predicted_iou=0.9, **options))
    assert [score for _, score in found] == pytest.approx([score for score, _, _ in kept])
    assert all((mask == expected).all() for (mask, _), (_, _, expected) in zip(found, kept, strict=True))
    assert list(model.everything(image, predicted_iou=1.0, **options)) == []


@pytest.mark.parametrize("prompt", ["automatic", "point", "box"])
def test_masks_are_scored_as_those_of_a_detector(prompt: Any, tiny_sam: Path, data: Path, tmp_path: Path) -> None:
    generator = {"points_per_side": 3, "predicted_iou": 0.0, "stability": 0.0}
    options = {"data": data, "weights": tiny_sam, "prompt": prompt, "devices": "cpu", "pictures": 1, **generator}
    metrics = sam(out=tmp_path / "out", **options)
    kinds = ("box", "mask") if prompt == "automatic" else ("mask",)
    assert list(metrics) == [f"{kind}_{suffix}" for kind in kinds for suffix in ("ap", "ap50", "ap75")]
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == {"scale": "percent", **metrics}
    results = json.loads((tmp_path / "out" / "predictions.json").read_text())
    truth = open_split(data, "test").coco_ground_truth()
    assert average_precision(truth, results, boxes=prompt == "automatic") == metrics
    assert {result["image_id"] for result in results} == {image["id"] for image in truth["images"]}
    if prompt != "automatic":
        assert len(results) == len(truth["annotations"])
    for result in results:
        mask = decode_mask(result["segmentation"])
        rows, columns = mask.nonzero()
        x, y, width, height = result["bbox"]
        assert (x, y, x + width, y + height) == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    assert [path.name for path in (tmp_path / "out" / "pictures").iterdir()] == ["scene0.png"]
    assert sam(out=tmp_path / "out", **options) == metrics  # once more, in its place


def test_perfect_masks_have_a_mask_ap_of_100(
    tiny_sam: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def truth(self: SegmentAnything, image: np.ndarray, boxes: np.ndarray, prompt: str) -> Any:
        for x1, y1, x2, y2 in boxes.astype(int):
            mask = np.zeros(image.shape[:2], bool)
            mask[y1:y2, x1:x2] = True  # the objects are boxes
            yield mask, 0.5

    monkeypatch.setattr(SegmentAnything, "prompted", truth)
    metrics = sam(data=data, out=tmp_path / "out", weights=tiny_sam, prompt="box", devices="cpu", pictures=0)
    assert metrics == {"mask_ap": 100.0, "mask_ap50": 100.0, "mask_ap75": 100.0}


@pytest.mark.parametrize("prompt", ["automatic", "box"])
def test_masks_are_encoded_one_by_one(
    prompt: Any, tiny_sam: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: list[weakref.ref[np.ndarray]] = []

    def many(*_: Any, **__: Any) -> Any:
        for _ in range(3):
            mask = np.ones((HEIGHT, WIDTH), bool)
            alive.append(weakref.ref(mask))
            yield mask, 0.5
            del mask
            assert sum(one() is not None for one in alive) <= 1

    monkeypatch.setattr(SegmentAnything, "prompted", many)
    monkeypatch.setattr(SegmentAnything, "everything", many)
    sam(data=data, out=tmp_path / "out", weights=tiny_sam, prompt=prompt, devices="cpu", pictures=0)
    assert len(alive) == 6


def test_each_prompted_mask_has_its_objects_category(tiny_sam: Path, data: Path, tmp_path: Path) -> None:
    shutil.copytree(data, tmp_path / "two")
    path = tmp_path / "two" / "annotations" / "test.json"
    truth = json.loads(path.read_text())
    truth["categories"] = [{"id": 3, "name": "gland"}, {"id": 8, "name": "vessel"}]
    for number, annotation in enumerate(truth["annotations"]):
        annotation["category_id"] = (3, 8)[number % 2]
    path.write_text(json.dumps(truth))
    options = {"data": tmp_path / "two", "weights": tiny_sam, "devices": "cpu", "pictures": 0}
    sam(out=tmp_path / "out", prompt="box", **options)
    found = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert [result["category_id"] for result in found] == [3, 8] * 3
    with pytest.raises(UserError, match="has 2 categories, but automatic masks have none"):
        sam(out=tmp_path / "out", **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": "text"}, "prompt is 'text'; give automatic, point or box"),
        ({"points_per_side": 0}, "points_per_side is 0"),
        ({"detections_per_image": 0}, "detections_per_image 0"),
        ({"stability": 1.5}, "stability 1.5"),
        ({"data": "nowhere"}, "nowhere is not a data set"),
        ({"weights": "sam_vit_h.pth"}, "sam_vit_h.pth is not a readable Segment Anything model"),
    ],
)
def test_a_mistake_is_named_and_leaves_no_files(
    options: dict[str, Any], message: str, tiny_sam: Path, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        sam(**{"data": data, "out": tmp_path / "out", "weights": tiny_sam, "devices": "cpu"} | options)
    assert not (tmp_path / "out").exists()


def test_a_folder_with_other_files_is_not_a_model(tiny_sam: Path, data: Path, tmp_path: Path) -> None:
    for change in ("empty", "other tensors", "pickle"):
        folder = tmp_path / change
        folder.mkdir()
        if change != "empty":
            shutil.copytree(tiny_sam, folder, dirs_exist_ok=True)
            model = transformers.SamModel.from_pretrained(tiny_sam)
            state = {f"another.{key}": value for key, value in model.state_dict().items()}
            if change == "pickle":  # which could run code
                (folder / "model.safetensors").unlink()
                torch.save(model.state_dict(), folder / "pytorch_model.bin")
            else:
                model.save_pretrained(folder, state_dict=state)
        with pytest.raises(UserError, match=r"is not a readable Segment Anything model"):
            SegmentAnything(folder, torch.device("cpu"))


def test_the_folder_of_a_detectors_run_is_not_touched(tiny_sam: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("detector: mask_rcnn_fpn\n")
    with pytest.raises(UserError, match="holds another run"):
        sam(data=data, out=tmp_path, weights=tiny_sam, devices="cpu")


def test_without_transformers_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"pip install 'densepath\[sam\]'"):
        SegmentAnything("facebook/sam-vit-huge", torch.device("cpu"))


def test_the_box_of_a_result_is_that_of_coco(data: Path) -> None:
    """The bounding box of the mask, edges included, as in the ground truth."""
    for annotation in open_split(data, "test").coco_ground_truth()["annotations"]:
        assert rle.toBbox(annotation["segmentation"]).tolist() == pytest.approx(annotation["bbox"])


def test_a_folder_that_another_evaluation_writes_to_is_refused(data: Path, tiny_sam: Path, tmp_path: Path) -> None:
    with sole_writer(tmp_path), pytest.raises(UserError, match="writes to"):
        sam(data=data, out=tmp_path, weights=tiny_sam, devices="cpu")
    assert list(tmp_path.iterdir()) == []


def test_the_bits_that_images_use_are_seen_and_what_is_read_is_said(
    data: Path, tiny_sam: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Images of 12 bits in 16-bit files would be nearly black."""
    grey = shutil.copytree(data, tmp_path / "data")
    for path in (grey / "test").iterdir():
        pixels = np.asarray(Image.open(path).convert("L")).astype(np.uint16) * 16
        pixels[0, 0] = 4095
        Image.fromarray(pixels).save(path)
    (grey / "test" / "notes.txt").touch()
    (grey / "test" / "more.png").write_bytes((grey / "test" / "scene0.png").read_bytes())
    seen: list[np.ndarray] = []

    def find(self: Any, image: np.ndarray, boxes: np.ndarray, prompt: str) -> list[Any]:
        seen.append(image)
        return [(np.ones(image.shape[:2], bool), 0.9)] * len(boxes)

    monkeypatch.setattr(SegmentAnything, "prompted", find)
    sam(data=grey, out=tmp_path / "out", weights=tiny_sam, prompt="box", devices="cpu", pictures=0)
    for path, image in zip(sorted((grey / "test").glob("scene*")), seen, strict=True):
        shown = np.rint(np.asarray(Image.open(path), np.float64) * (255 / 4095)).astype(np.uint8)
        np.testing.assert_array_equal(image, shown[..., None].repeat(3, axis=2))
    line = "2 test images in 1 folder, 36-48 px, kept in memory; passed over: 1 image not in test.json, 1 .txt file"
    assert f"densepath: {line}\n" in capsys.readouterr().err
