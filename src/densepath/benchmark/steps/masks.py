"""The step on label maps of images and volumes: a segmenter that is trained on them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from densepath.benchmark.labelled_sets import LabelledSet
from densepath.benchmark.mask_sets import MASK_OPTIONS, read_masks
from densepath.benchmark.steps.step import Options, Step, with_defaults
from densepath.runs.checkpoints import CHECKPOINTS
from densepath.transfer.classify.splits import FOLDS
from densepath.transfer.segment.config import SegmentConfig


def _images(options: Options, data: LabelledSet) -> int:
    values = with_defaults(SEGMENT, options, ("epochs", "folds", "fraction"))
    folds = (FOLDS if data.folds else 0) if values["folds"] is None else values["folds"]
    count = round(len(data.train.names) * values["fraction"])
    return max(folds, 1) * (values["epochs"] * count + len(data.test.names))


def _scores(written: Mapping[str, Any]) -> dict[str, Any]:
    """The means over the trainings of a run, which are its folds."""
    return {"scale": "percent"} | {name: each["mean"] for name, each in written["scores"].items()}


SEGMENT = Step(
    "segment",
    SegmentConfig,
    metrics=("mean_dice", "mean_iou", "pooled_iou", "mean_hd95"),
    families=("dice_", "iou_", "hd95_"),
    read=read_masks,
    read_options=MASK_OPTIONS,
    images=_images,
    recipes="segment",
    own=("labels", "test_data", "test_labels", "seeds", "decoder"),
    scores=_scores,
    scratch=(CHECKPOINTS, f"seed_*/{CHECKPOINTS}", f"fold_*/{CHECKPOINTS}"),
)
