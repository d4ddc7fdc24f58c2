"""The step on label maps of images and volumes: a segmenter that is trained on them."""

from __future__ import annotations

from densepath.benchmark.mask_sets import MASK_OPTIONS, read_masks
from densepath.benchmark.steps.folds import SCRATCH, images_of_folds, mean_scores
from densepath.benchmark.steps.step import Step
from densepath.transfer.segment.config import SegmentConfig

SEGMENT: Step = Step(
    "segment",
    SegmentConfig,
    metrics=("mean_dice", "mean_iou", "pooled_iou", "mean_hd95"),
    families=("dice_", "iou_", "hd95_"),
    read=read_masks,
    read_options=MASK_OPTIONS,
    images=lambda options, data: images_of_folds(SEGMENT, options, data),
    recipes="segment",
    own=("labels", "test_data", "test_labels", "seeds", "decoder"),
    scores=mean_scores,
    scratch=SCRATCH,
)
