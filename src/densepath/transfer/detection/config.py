"""The options of fine-tuning a detector, and their record in the run folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from densepath.core.errors import UserError
from densepath.core.plain import plain
from densepath.core.single_values import refuse_none
from densepath.core.system import check_workers
from densepath.training.intervals import Intervals
from densepath.training.update_limits import UpdateLimits

ANCHOR_SIZES = (32, 64, 128, 256, 512)  # pixels
DETECTIONS = 100  # per image at most; as in COCO
OBJECT_SCORE = 0.5  # detections with a lower score are neither drawn nor compared as objects
STEPS = 5000  # of the schedule 1x: the paper's for GlaS
# Options that may change when a run is resumed, because they do not change the result.
FREE = ("data", "out", "workers", "devices", "pictures", "log_every", "save_every_steps", "save_every_minutes")
_LEAST_SIZE = 32  # pixels


@dataclass(frozen=True, kw_only=True)
class DetectConfig:
    """The options of fine-tuning a detector.

    Args:
        data: a folder as written by ``densepath data``: images and COCO instances, train and test.
        orientation: for images with an orientation tag (of cameras), the pixels that the annotations describe: as
            "stored" in the file, or as "viewed", turned by the tag. Without it such images are refused.
        out: the run folder: ``metrics.json``, ``predictions.json`` (COCO results), ``pictures/``,
            ``exported/detector.safetensors``, and the files of every run.
        weights: initial weights of the backbone: a file, a run folder, "random", a timm name, "hf-hub:OWNER/NAME" or
            the folder of such a model.
        backbone: the backbone, a timm name; default: that of the weights, resnet18 for random ones.
        detector: "mask_rcnn_fpn"; "mask_rcnn_c4", whose head is the backbone's own stage 5; "mask_rcnn_dc5", with a
            dilated stage 5; "retinanet", which predicts only boxes; or "vitdet", for a vision transformer with patches
            of 14 or 16 px, trained by AdamW with layer-wise rates. Names ending in "_small" have narrow heads, for a
            CPU.
        rescale_filters: scale the backbone's filters before batch norms to the norm that they have in a new network.
            This does not change the features, and layers whose filter norms became large in pre-training, as they do
            with large steps, continue to learn. Published results of fine-tuning do not use it.
        anchor_sizes: sizes of the anchor boxes in pixels of the resized image: one for each of five levels; for C4 and
            DC5 any number.
        detections_per_image: largest number of detections per image, also in scoring.
        schedule: length of the run: "0.5x", "1x", "2x", "3x" or "5x".
        base_steps: number of steps of the schedule 1x.
        max_steps: number of steps; overrides the schedule.
        warmup_steps: number of steps of linear warm-up; default: 1000, but at most a fifth of ``max_steps`` or
            ``base_steps``.
        drops: shares of the run after which the learning rate is divided by 10.
        batch_size: images per step, over all devices; a multiple of their number.
        lr: learning rate; 0.02 (RetinaNet: 0.01, ViTDet: 1e-4) for 16 images, scaled linearly for other batch sizes.
        train_size: smallest and largest short edge in training, drawn uniformly, in pixels.
        train_crop: side of a random square that is cut out of each training image before it is resized, in pixels; for
            large images with many objects.
        test_size: short edge in testing, in pixels.
        precise_bn_batches: number of training batches over which the batch-norm statistics are averaged before the
            evaluation (at most the number trained on; 0 keeps the running statistics).
        pictures: number of test images to draw with their true and their detected outlines.
        fraction: share of the training images to use, by patient where patients are known (``patient`` in the JSON, or
            a ``manifest.csv``). With the same seed a smaller share is a part of a larger one.
        optimizer: clipping of gradients, and parameters that are frozen at first.
        seed: seed of new weights, the choice of images, order, sizes, flips, and of the samples of the detector.
        workers: processes that decode images, per device; default: chosen automatically.
        devices: "auto", a number, "cpu" or "cpu:N".
        precision: "auto", "32" or "bf16-mixed".
        log_every: write measurements every N steps.
        save_every_steps: write a checkpoint every N steps; 0 for never.
        save_every_minutes: write a checkpoint every N minutes; 0 for never.
        resume: continue the run in ``out``.
        evaluate: do not train; score the detector in ``out`` again, on the test images of ``data`` at the size that it
            was trained for. Scores, predictions and pictures in ``out`` are replaced. Options of training must be as
            they were.

    Raises:
        UserError: an invalid value.
    """

    data: str | Path
    out: str | Path
    orientation: Literal["stored", "viewed"] | None = None
    weights: str | Path = "random"
    backbone: str | None = None
    detector: str = "mask_rcnn_fpn"
    rescale_filters: bool = False
    anchor_sizes: tuple[int, ...] = ANCHOR_SIZES
    detections_per_image: int = DETECTIONS
    schedule: str = "1x"
    base_steps: int = STEPS
    max_steps: int | None = None
    warmup_steps: int | None = None
    drops: tuple[float, ...] = (0.8,)
    batch_size: int = 16
    lr: float | None = None
    train_size: tuple[int, int] = (400, 522)
    train_crop: int | None = None
    test_size: int = 522
    precise_bn_batches: int = 200
    pictures: int = 8
    fraction: float = 1.0
    optimizer: UpdateLimits = field(default_factory=UpdateLimits)
    seed: int = 0
    workers: int | None = None
    devices: int | str = "auto"
    precision: Literal["auto", "32", "bf16-mixed"] = "auto"
    log_every: int = 20
    save_every_steps: int = 0
    save_every_minutes: float = 10.0
    resume: bool = False
    evaluate: bool = False

    def __post_init__(self) -> None:
        from densepath.annotations.fraction import check_fraction  # these need torch
        from densepath.core.random import check_seed

        refuse_none(self)
        Intervals(self.log_every, self.save_every_steps, self.save_every_minutes)
        for name in ("precise_bn_batches", "pictures"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} is {getattr(self, name)}; give a number, or 0 for none")
        check_workers(self.workers)
        if not _LEAST_SIZE <= self.train_size[0] <= self.train_size[1] or self.test_size < _LEAST_SIZE:
            sizes = f"train_size is {list(self.train_size)} and test_size {self.test_size}"
            raise UserError(f"{sizes}; give the smallest and the largest, of {_LEAST_SIZE} pixels or more")
        if self.train_crop is not None and self.train_crop < _LEAST_SIZE:
            raise UserError(f"train_crop is {self.train_crop}; give {_LEAST_SIZE} pixels or more")
        if self.detections_per_image < 1:
            raise UserError(f"detections_per_image is {self.detections_per_image}; give at least 1")
        check_fraction(self.fraction)
        check_anchor_sizes(self.anchor_sizes)
        check_seed(self.seed)

    def record(self) -> dict[str, Any]:
        """The options in the plain types of YAML, except ``resume`` and ``evaluate``."""
        return {f.name: plain(getattr(self, f.name)) for f in fields(self) if f.name not in ("resume", "evaluate")}


def check_anchor_sizes(sizes: Sequence[int], levels: int | None = None) -> None:
    """Check anchor sizes.

    Raises:
        UserError: there are none, one is not positive, or their number differs from the number of levels.
    """
    wanted = "one or more sizes" if levels is None else f"{levels} sizes, one for each level of the pyramid"
    if not sizes or min(sizes) < 1 or len(sizes) != (levels or len(sizes)):
        raise UserError(f"anchor_sizes are {list(sizes)}; give {wanted}, in pixels")
