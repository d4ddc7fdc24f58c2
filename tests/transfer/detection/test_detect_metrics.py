"""AP equals COCO's, masks are pasted at their boxes, and pictures show hits and misses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from densepath.annotations.outlines import encode_part
from densepath.core.errors import UserError
from densepath.transfer.detection.average_precision import average_precision
from densepath.transfer.detection.evaluation import describe
from densepath.transfer.detection.found import coco_results
from densepath.transfer.detection.instances import decode_mask, encode_mask, objects_of, paste
from densepath.transfer.detection.object_colors import PALETTE
from densepath.transfer.detection.overlay import match_masks, overlay

SIZE = (60, 80)


def ellipse(rng: np.random.Generator) -> np.ndarray:
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    y, x = rng.uniform(10, 50), rng.uniform(10, 70)
    return ((rows - y) / rng.uniform(5, 14)) ** 2 + ((columns - x) / rng.uniform(5, 14)) ** 2 <= 1


def box_of(mask: np.ndarray) -> list[float]:
    rows, columns = np.nonzero(mask)
    low, high = (columns.min(), rows.min()), (columns.max() + 1, rows.max() + 1)
    return [float(low[0]), float(low[1]), float(high[0] - low[0]), float(high[1] - low[1])]


def write_truth(path: Path, images: int = 6, per_image: int = 4, first_id: int = 1) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    annotations = []
    for image in range(images):
        for _ in range(per_image):
            mask = ellipse(rng)
            annotations.append(
                {
                    "id": first_id + len(annotations),
                    "image_id": 7 + image,
                    "category_id": 3,
                    "iscrowd": 0,
                    "bbox": box_of(mask),
                    "area": int(mask.sum()),
                    "segmentation": encode_mask(mask),
                }
            )
    truth = {
        "images": [{"id": 7 + i, "height": 60, "width": 80, "file_name": f"{i}.png"} for i in range(images)],
        "annotations": annotations,
        "categories": [{"id": 3, "name": "gland"}],
    }
    path.write_text(json.dumps(truth))
    return truth


def noisy_results(truth: dict[str, Any]) -> list[dict[str, Any]]:
    """Shifted copies of the truth, some missing, with false ones in between."""
    rng = np.random.default_rng(1)
    results = []
    for annotation in truth["annotations"]:
        mask = np.roll(decode_mask(annotation["segmentation"]), tuple(rng.integers(-3, 4, 2)), axis=(0, 1))
        for wanted, shape in ((rng.random() < 0.8, mask), (rng.random() < 0.3, ellipse(rng))):
            if wanted:
                results.append(
                    {
                        "image_id": annotation["image_id"],
                        "category_id": 3,
                        "score": float(rng.random()),
                        "bbox": box_of(shape),
                        "segmentation": encode_mask(shape),
                    }
                )
    return results


def test_ap_equals_pycocotools(tmp_path: Path) -> None:
    truth = write_truth(tmp_path / "truth.json")
    results = noisy_results(truth)
    metrics = average_precision(truth, results)
    coco = COCO(str(tmp_path / "truth.json"))
    for name, kind in (("box", "bbox"), ("mask", "segm")):
        oracle = COCOeval(coco, coco.loadRes([dict(r) for r in results]), kind)
        oracle.evaluate()
        oracle.accumulate()
        oracle.summarize()
        found = [metrics[f"{name}_{suffix}"] for suffix in ("ap", "ap50", "ap75")]
        assert found == pytest.approx([100 * score for score in oracle.stats[:3]], abs=1e-7)
        assert 5 < found[0] < 95


@pytest.mark.parametrize("limit", [3, 150])
def test_ap_counts_at_most_the_given_number_of_detections(tmp_path: Path, limit: int) -> None:
    truth = write_truth(tmp_path / "truth.json", images=2, per_image=130)
    results = noisy_results(truth)
    coco = COCO(str(tmp_path / "truth.json"))
    oracle = COCOeval(coco, coco.loadRes([dict(r) for r in results]), "bbox")
    oracle.params.maxDets = [limit]
    oracle.evaluate()
    oracle.accumulate()
    expected = 100 * float(oracle.eval["precision"][:, :, :, 0, -1].mean())  # of objects of any size
    assert average_precision(truth, results, detections_per_image=limit)["box_ap"] == pytest.approx(expected, abs=1e-7)
    assert average_precision(truth, results)["box_ap"] != pytest.approx(expected, abs=0.1)


def test_boxes_without_masks_are_scored_as_boxes(tmp_path: Path) -> None:
    truth = write_truth(tmp_path / "truth.json")
    results = noisy_results(truth)
    boxes = [{key: value for key, value in r.items() if key != "segmentation"} for r in results]
    metrics = average_precision(truth, boxes, masks=False)
    assert set(metrics) == {"box_ap", "box_ap50", "box_ap75"}
    assert metrics == {key: value for key, value in average_precision(truth, results).items() if key in metrics}
    assert f"AP {metrics['box_ap']:.1f} " in describe(metrics, 6)  # the same scale on the screen and in files
    assert describe(metrics, 6).count("AP50") == 1 and "masks" not in describe(metrics, 6)


@pytest.mark.filterwarnings("error")
def test_perfect_results_have_an_ap_of_100_and_none_have_zero(tmp_path: Path) -> None:
    truth = write_truth(tmp_path / "truth.json", first_id=0)
    results = [
        {k: a[k] for k in ("image_id", "category_id", "bbox", "segmentation")} | {"score": 0.9}
        for a in truth["annotations"]
    ]
    assert set(average_precision(truth, results).values()) == {100.0}
    assert set(average_precision(truth, []).values()) == {0.0}


def test_truth_without_instances_is_named(tmp_path: Path) -> None:
    truth = write_truth(tmp_path / "truth.json", per_image=0)
    with pytest.raises(UserError, match="has no instances"):
        average_precision(truth, [])


def encode_pasted(mask: np.ndarray, box: list[float], size: tuple[int, int]) -> dict[str, Any]:
    top, left, pasted = paste(mask, box, size)
    return encode_part(pasted, top, left, size)


def paste_mask(mask: torch.Tensor, box: list[float], size: tuple[int, int] = SIZE) -> np.ndarray:
    return decode_mask(encode_pasted(mask.numpy(), box, size))


@pytest.mark.parametrize("side", [1, 2, 28])
def test_pasted_masks_equal_torchs_bilinear_samples_in_pycocotools_run_lengths(side: int) -> None:
    rng = np.random.default_rng(side)
    size = (40, 30)
    several = 0
    for _ in range(200):
        mask = rng.random((side, side)).astype(np.float32)
        corner, sides = rng.uniform(-15, 35, 2), rng.uniform(0.2, 60, 2)
        x1, y1, x2, y2 = box = [*corner.tolist(), *(corner + sides).tolist()]
        expected = np.zeros(size, bool)
        rows, columns = (np.arange(n) + 0.5 for n in size)
        down, right = np.flatnonzero((rows > y1) & (rows < y2)), np.flatnonzero((columns > x1) & (columns < x2))
        if len(down) and len(right):
            y, x = (rows[down] - y1) / (y2 - y1) * 2 - 1, (columns[right] - x1) / (x2 - x1) * 2 - 1
            grid = torch.tensor(np.stack(np.broadcast_arrays(x[None], y[:, None]), -1))[None]
            sampled = F.grid_sample(
                torch.tensor(mask).double()[None, None], grid, align_corners=False, padding_mode="border"
            )
            expected[np.ix_(down, right)] = sampled[0, 0].numpy() >= 0.5
            several += 1
        assert encode_pasted(mask, box, size) == encode_mask(expected)
    assert several > 100


@pytest.mark.parametrize("box", [[0.0, 0.0, 80.0, 60.0], [10.0, 0.0, 40.0, 60.0], [-5.0, -5.0, 90.0, 70.0]])
def test_runs_over_the_whole_height_are_merged(box: list[float]) -> None:
    full = encode_pasted(np.ones((28, 28), np.float32), box, SIZE)
    assert full == encode_mask(decode_mask(full)) and decode_mask(full).all(axis=0).sum() >= 30


def test_a_pasted_mask_fills_its_box_to_the_pixel() -> None:
    image = paste_mask(torch.ones(28, 28), [10.0, 20.0, 40.0, 50.0])
    expected = np.zeros(SIZE, dtype=bool)
    expected[20:50, 10:40] = True
    assert np.array_equal(image, expected)


def test_a_half_mask_ends_in_the_middle_of_its_box_and_at_the_image_border() -> None:
    mask = torch.zeros(28, 28)
    mask[:, 14:] = 1
    image = paste_mask(mask, [60.0, -10.0, 100.0, 30.0])
    expected = np.zeros(SIZE, dtype=bool)
    expected[:30, 80:] = True
    assert np.array_equal(image, expected)
    image = paste_mask(mask, [-30.0, 40.0, 30.0, 70.0])
    expected[:] = False
    expected[40:, :30] = True
    assert np.array_equal(image, expected)


@pytest.mark.parametrize("box", [[80.0, 0.0, 90.0, 10.0], [5.2, 5.2, 5.4, 5.4], [-9.0, -9.0, 0.0, 0.0]])
def test_a_box_without_a_pixel_pastes_nothing(box: list[float]) -> None:
    assert not paste_mask(torch.ones(28, 28), box).any()


def test_results_can_be_written_as_json_and_name_the_category() -> None:
    detections = {
        "boxes": torch.tensor([[10.0, 20.0, 40.0, 50.0]]),
        "scores": torch.tensor([0.75]),
        "labels": torch.tensor([2]),
        "masks": torch.ones(1, 28, 28),
    }
    (result,) = json.loads(json.dumps(coco_results(detections, 7, SIZE, [3, 8])))
    assert (result["image_id"], result["category_id"], result["score"]) == (7, 8, 0.75)
    assert result["bbox"] == [10, 20, 30, 30]
    assert decode_mask(result["segmentation"])[20:50, 10:40].all()
    assert rle.area(result["segmentation"]) == 900


def test_boxes_without_masks_are_compared_as_full_boxes() -> None:
    detections = {
        "boxes": torch.tensor([[10.0, 20.0, 40.0, 50.0], [-5.0, 0.0, 20.0, 90.0]]),
        "scores": torch.tensor([0.75, 0.5]),
        "labels": torch.tensor([1, 1]),
    }
    results = coco_results(detections, 7, SIZE, [3])
    assert [sorted(result) for result in results] == [["bbox", "category_id", "image_id", "score"]] * 2
    mask = np.zeros(SIZE, dtype=bool)
    mask[30, 12] = True
    sample = {"image": np.zeros((*SIZE, 3)), "boxes": np.float32([[10, 20, 40, 51]]), "masks": mask[None]}
    (true,), found = objects_of(sample, results)
    expected = np.zeros((2, *SIZE), dtype=bool)
    expected[0, 20:50, 10:40] = expected[1, :, :20] = True
    assert np.array_equal(found, expected)
    assert true.sum() == 30 * 31 and match_masks([true], found) == [0, None]
    with_masks = [result | {"segmentation": encode_mask(mask)} for result in results]
    (true,), found = objects_of(sample, with_masks)
    assert np.array_equal(true, mask) and np.array_equal(found, [mask, mask])
    assert [len(objects) for objects in objects_of(sample, [])] == [1, 0]


def test_matches_equal_a_plain_loop_over_pixels() -> None:
    rng = np.random.default_rng(2)
    truth = [ellipse(rng) for _ in range(12)]
    found = [np.roll(truth[i], tuple(rng.integers(-4, 5, 2)), axis=(0, 1)) for i in rng.integers(0, 12, 30)]
    free, expected = set(range(12)), []
    for mask in found:
        overlaps = {i: (truth[i] & mask).sum() / (truth[i] | mask).sum() for i in sorted(free)}
        best = max(overlaps, key=overlaps.__getitem__)
        expected.append(best if overlaps[best] >= 0.5 else None)
        free -= {best} if overlaps[best] >= 0.5 else set()
    assert match_masks(truth, found) == expected
    assert None in expected and len(free) < 6
    assert match_masks(truth, []) == [] and match_masks([], found[:2]) == [None, None]


def test_matches_are_greedy_and_each_true_object_is_found_once() -> None:
    a, b = np.zeros((2, *SIZE), dtype=bool)
    a[:20, :20] = b[30:50, 30:50] = True
    close = np.roll(a, 2, axis=0)
    assert match_masks([a, b], [a, close, b, np.roll(b, 15, axis=1)]) == [0, None, 1, None]


def test_an_overlay_draws_correct_and_false_detections_in_their_colors() -> None:
    image = np.full((*SIZE, 3), 200, dtype=np.uint8)
    a, wrong = np.zeros((2, *SIZE), dtype=bool)
    a[5:25, 5:25] = wrong[30:50, 40:70] = True
    picture = np.asarray(overlay(image, [a], [a, wrong, ~a], [0.9, 0.6, 0.4]))
    half = picture.shape[1] // 2

    def count(part: np.ndarray, color: tuple[int, int, int]) -> int:
        return int((part == color).all(-1).sum())

    width = (picture.shape[1] - 8) // 2
    outline = (picture[:, :width] == (0, 255, 64)).all(-1)
    assert outline.any() and (picture[:, width + 8 :][outline] == (0, 255, 64)).all()
    assert count(picture[:, :half], (255, 0, 0)) == 0 < count(picture[:, half:], (255, 0, 0))


def test_an_overlay_dashes_what_was_missed_and_objects_that_touch_differ() -> None:
    image = np.full((400, 400, 3), 128, np.uint8)
    masks = np.zeros((5, 400, 400), dtype=bool)
    for mask, left in zip(masks, (0, 60, 120, 200, 260), strict=True):
        mask[100:160, left : left + 60] = True
    truth, found = list(masks[:3]), [masks[0], masks[1], masks[3], masks[4]]
    picture = np.asarray(overlay(image, truth, found, [0.9] * 4))[26:]
    true_side, side = picture[:, :400], picture[:, 408:]
    lines = {tuple(side[130, x].tolist()) for x in (0, 60, 200, 260)}
    assert len(lines) == 4 and (255, 0, 0) in lines
    assert tuple(side[130, 0]) == tuple(true_side[130, 0]) and tuple(side[130, 60]) == tuple(true_side[130, 60])
    assert {tuple(pixel) for pixel in side[100:160, 120].tolist()} == {(255, 0, 0), (255, 255, 255)}
    assert {tuple(pixel) for pixel in true_side[100:160, 120].tolist()} <= set(PALETTE)


def test_a_score_is_written_only_if_it_does_not_cover_its_object() -> None:
    image = np.zeros((400, 400, 3), np.uint8)
    large, small = np.zeros((2, 400, 400), dtype=bool)
    large[100:200, 100:200] = small[300:312, 300:312] = True
    for mask, written in ((large, True), (small, False)):
        half = np.asarray(overlay(image, [], [mask], [0.9]))[26:, 408:]  # below the caption, right of the truth
        assert (half[130:170, 130:170] == (255, 0, 0)).all(-1).any() == written


def test_a_better_score_is_not_written_over_and_captions_fit_narrow_images() -> None:
    image = np.full((300, 300, 3), 128, np.uint8)
    mask = np.zeros((300, 300), dtype=bool)
    mask[100:200, 100:200] = True
    one, both = (np.asarray(overlay(image, [], [mask] * len(s), s)) for s in ([0.9], [0.9, 0.6]))
    strokes = [(picture[156:196, 438:478] == 0).all(-1) for picture in (one, both)]  # around the center of the object
    assert strokes[0].any() and np.array_equal(*strokes)
    caption = both[:26, 308:]
    assert (caption == 0).any() and (caption[:, -4:] == 255).all()
