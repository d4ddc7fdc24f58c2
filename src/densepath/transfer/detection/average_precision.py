"""COCO average precision of boxes and masks."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from faster_coco_eval import COCO, COCOeval_faster

from densepath.core.errors import UserError

_SUFFIXES = ("ap", "ap50", "ap75")
_QUIET = logging.getLogger(__name__).debug


def average_precision(
    truth: Mapping[str, Any],
    results: list[dict[str, Any]],
    *,
    boxes: bool = True,
    masks: bool = True,
    detections_per_image: int = 100,
) -> dict[str, float]:
    """COCO AP over the IoU thresholds 0.50:0.05:0.95, at 0.50 and at 0.75.

    Args:
        truth: the content of a COCO instances JSON.
        results: in COCO's results format, with ``bbox`` and, for masks, an RLE ``segmentation`` each; may
            be empty.
        boxes, masks: score these.
        detections_per_image: maximum number of detections per image and category; 100 is COCO's number.

    Returns:
        box_ap, box_ap50, box_ap75, and mask_ap, mask_ap50, mask_ap75, in percent, for what is scored.

    Raises:
        UserError: the ground truth has no instance, so that precision is undefined.

    Source: Lin et al., "Microsoft COCO", ECCV 2014, and its official evaluation.
    """
    # The evaluator marks matches by ids, where 0 means no match, so ids are renumbered from 1.
    instances = [
        {"iscrowd": 0, "area": a["bbox"][2] * a["bbox"][3]} | a | {"id": i}
        for i, a in enumerate(truth["annotations"], start=1)
    ]
    if not any(not instance["iscrowd"] for instance in instances):
        raise UserError("the test split has no instances; outline some instances in its images")
    kinds = [("box", "bbox")] * boxes + [("mask", "segm")] * masks
    if not results:  # faster-coco-eval cannot read an empty list before 1.8
        return {f"{name}_{suffix}": 0.0 for name, _ in kinds for suffix in _SUFFIXES}
    coco = COCO({**truth, "annotations": instances}, print_function=_QUIET)
    metrics = {}
    for name, kind in kinds:
        evaluator = COCOeval_faster(coco, coco.loadRes([dict(r) for r in results]), kind, print_function=_QUIET)
        evaluator.params.maxDets = [1, min(10, detections_per_image), detections_per_image]  # AP uses the last
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
        for suffix, value in zip(_SUFFIXES, evaluator.stats[:3], strict=True):
            metrics[f"{name}_{suffix}"] = 100 * float(value)
    return metrics
