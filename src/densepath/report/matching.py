"""Detections matched with true objects at an IoU of 0.5, as COCO's evaluation matches them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from faster_coco_eval import mask as rle

_IOU = 0.5
_RECALLS = np.linspace(0, 1, 101)


@dataclass(frozen=True, eq=False)
class Matched:
    """The true objects and the detections of an image, both of all categories.

    Args:
        truth: COCO's annotations, without crowds.
        found: COCO's results, from the highest score.
        match: (len(found),) the number of the true object that each detects; -1 for none, -2 for part of a crowd.
    """

    truth: Sequence[Mapping[str, Any]]
    found: Sequence[Mapping[str, Any]]
    match: npt.NDArray[np.int64]

    @property
    def best_score(self) -> npt.NDArray[np.float64]:
        """(len(truth),) the score of the detection of each true object; -1 if it is not detected."""
        scores = np.full(len(self.truth), -1.0)
        for result, number in zip(self.found, self.match, strict=True):
            if number >= 0:
                scores[number] = shown_score(result)
        return scores

    def f1(self, least: float) -> float:
        """The F1 of detections with at least a score; 1 for an image without objects and detections."""
        shown = np.array([result["score"] >= least for result in self.found], bool)
        correct, wrong = int((shown & (self.match >= 0)).sum()), int((shown & (self.match == -1)).sum())
        total = correct + wrong + len(self.truth)
        return 2 * correct / total if total else 1.0


def shown_score(result: Mapping[str, Any]) -> float:
    """The score of a detection as a page has it."""
    return round(float(result["score"]), 4)


def match_image(
    annotations: Sequence[Mapping[str, Any]], results: Sequence[Mapping[str, Any]], most: int, masks: bool
) -> Matched:
    """Match the detections of an image.

    Args:
        annotations: COCO's annotations of the image, with compressed run lengths.
        results: COCO's results for it.
        most: number of detections of a category that count.
        masks: compare masks; otherwise boxes.
    """
    truth = [each for each in annotations if not each.get("iscrowd", 0)]
    crowds = [each for each in annotations if each.get("iscrowd", 0)]
    found: list[Mapping[str, Any]] = []
    match: list[int] = []
    for category in sorted({each["category_id"] for each in [*annotations, *results]}):
        own = [number for number, each in enumerate(truth) if each["category_id"] == category]
        targets = [truth[number] for number in own] + [each for each in crowds if each["category_id"] == category]
        detected = [each for each in results if each["category_id"] == category]
        detected = sorted(detected, key=lambda each: -each["score"])[:most]
        ious = _ious(detected, targets, masks)
        free = np.ones(len(own), bool)
        for row in ious:
            candidates = np.where(free, row[: len(own)], 0.0)
            best = int(candidates.argmax()) if len(own) else -1
            if best >= 0 and candidates[best] >= _IOU:
                free[best] = False
                match.append(own[best])
            else:
                match.append(-2 if (row[len(own) :] >= _IOU).any() else -1)
        found += detected
    order = sorted(range(len(found)), key=lambda k: -found[k]["score"])
    return Matched(truth, [found[k] for k in order], np.array([match[k] for k in order], np.int64))


def precision_recall(images: Sequence[Matched], category: int) -> npt.NDArray[np.float64] | None:
    """The precision of a category at 101 recalls from 0 to 1, (101,); None without a true object.

    Their mean is COCO's AP50.
    """
    total = sum(each["category_id"] == category for image in images for each in image.truth)
    if not total:
        return None
    pairs = [
        (result["score"], number >= 0)
        for image in images
        for result, number in zip(image.found, image.match, strict=True)
        if result["category_id"] == category and number != -2
    ]
    pairs.sort(key=lambda pair: -pair[0])
    correct = np.cumsum([right for _, right in pairs])
    precision = correct / np.arange(1, len(pairs) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1] if len(pairs) else precision
    place = np.searchsorted(correct / total, _RECALLS, side="left")
    return np.append(precision, 0.0)[np.minimum(place, len(precision))]


def _ious(
    found: Sequence[Mapping[str, Any]], truth: Sequence[Mapping[str, Any]], masks: bool
) -> npt.NDArray[np.float64]:
    """(N, M); of a crowd, the share of the detection that lies in it."""
    if not found or not truth:
        return np.zeros((len(found), len(truth)))
    crowd = [int(bool(each.get("iscrowd", 0))) for each in truth]
    sides: list[Any] = []
    for group in (found, truth):
        if masks:
            sides.append([_bytes(each["segmentation"]) for each in group])
        else:
            sides.append(np.array([each["bbox"] for each in group], np.float64).reshape(-1, 4))
    ious: npt.NDArray[np.float64] = np.asarray(rle.iou(*sides, crowd)).reshape(len(found), len(truth))
    return ious


def _bytes(outline: Mapping[str, Any]) -> dict[str, Any]:
    counts = outline["counts"]
    return {"size": list(outline["size"]), "counts": counts.encode() if isinstance(counts, str) else counts}
