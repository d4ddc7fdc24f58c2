"""Detections matched with true objects, against COCO's evaluation."""

from __future__ import annotations

import numpy as np
import pytest

from densepath.report.matching import match_image, precision_recall
from densepath.transfer.detection.average_precision import average_precision
from tests.report.conftest import outline


def squares(count: int, rng: np.random.Generator, image: int) -> list[dict]:
    made = []
    for top, left, side in rng.integers((0, 0, 6), (26, 26, 14), (count, 3)).tolist():
        shape = {"segmentation": outline(top, left, side), "bbox": [left, top, side, side], "area": side * side}
        made.append({"image_id": image, "category_id": int(rng.integers(1, 3)), **shape})
    return made


@pytest.mark.parametrize("masks", [True, False])
def test_the_area_below_the_curve_is_cocos_ap50(masks: bool) -> None:
    rng = np.random.default_rng(3)
    truth, results, matched = [], [], []
    for image in range(6):
        own = [each | {"iscrowd": int(rng.random() < 0.2)} for each in squares(5, rng, image)]
        found = [each | {"score": float(rng.random())} for each in squares(6, rng, image)]
        for each in own[:3]:  # most objects are found, more or less in place
            top, left, side = each["bbox"][1], each["bbox"][0], max(each["bbox"][2] - 1, 4)
            moved = {"segmentation": outline(top, left, side), "bbox": [left, top, side, side]}
            found.append({**each, **moved, "score": float(rng.random())})
        truth += own
        results += found
        matched.append(match_image(own, found, 5, masks))
    record = {
        "images": [{"id": image, "width": 40, "height": 40} for image in range(6)],
        "annotations": truth,
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
    }
    ours = [precision_recall(matched, category) for category in (1, 2)]
    kinds = {"boxes": not masks, "masks": masks, "detections_per_image": 5}
    theirs = average_precision(record, results, **kinds)["mask_ap50" if masks else "box_ap50"]
    assert 20 < theirs < 95
    assert 100 * np.mean([curve.mean() for curve in ours]) == pytest.approx(theirs, abs=1e-6)


def test_each_object_keeps_the_score_of_its_detection() -> None:
    truth = [{"image_id": 1, "category_id": 1, "segmentation": outline(top, 0, 8)} for top in (0, 20)]
    found = [{"category_id": 1, "score": score, "segmentation": outline(0, 0, 8)} for score in (0.4, 0.9)]
    matched = match_image(truth, found, 100, True)
    assert matched.best_score.tolist() == [0.9, -1.0]
    assert [result["score"] for result in matched.found] == [0.9, 0.4] and matched.match.tolist() == [0, -1]
    assert matched.f1(0.5) == pytest.approx(2 / 3) and matched.f1(0.3) == pytest.approx(2 / 4)
    assert precision_recall([matched], 2) is None
