"""What a detector is trained with: its solver, images, pixels and initial weights, and the record of the run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from densepath.annotations.coco import CocoImages, open_split
from densepath.annotations.splits import check_splits, summarize_split
from densepath.core.errors import UserError, counted
from densepath.core.spacing import evenly_spaced
from densepath.nets.weights import load_weights
from densepath.nets.weights.filter_norms import filter_norms, set_filter_norms
from densepath.runs.folder import read_config
from densepath.sources.pixel_source import PixelSpec
from densepath.sources.slides.resolution import same_mpp
from densepath.training.agreement import refusing_together
from densepath.training.hardware import Hardware, choose_hardware, choose_workers
from densepath.transfer.detection.config import DetectConfig
from densepath.transfer.detection.detector import Detector
from densepath.transfer.detection.detector_file import DetectorNotes
from densepath.transfer.detection.detectors import BASE_LR, BOXES_ONLY, TRANSFORMER_DETECTORS
from densepath.transfer.detection.samples import TrainingBatches
from densepath.transfer.detection.solver import Solver, make_solver

_WINDOW = PixelSpec().window  # of 8-bit images
_SAMPLED = 16  # images whose µm per pixel are read


def begun_run(out: Path) -> dict[str, Any] | None:
    """The record of the run of a detector that is resumed; None if there is none yet.

    Raises:
        UserError: the folder holds another kind of run.
    """
    old = read_config(out)
    if old is not None and not old.keys() >= {"detector", "precision", "mean", "std"}:
        raise UserError(f"{out} holds another kind of run; name another folder")
    return old


def hardware_of_run(config: DetectConfig, old: Mapping[str, Any] | None) -> Hardware:
    """Where a run computes: in the precision of the hardware where it was started, unless another one is given."""
    precision = config.precision
    if old is not None and precision == "auto":
        precision = old["precision"]
    return choose_hardware(config.devices, precision)


def solver_of_run(config: DetectConfig) -> Solver:
    """The optimizer and its schedule."""
    return make_solver(
        config.schedule,
        config.max_steps,
        config.warmup_steps,
        config.drops,
        config.batch_size,
        config.lr,
        base_steps=config.base_steps,
        base_lr=BASE_LR[config.detector],
        optimizer="adamw" if config.detector in TRANSFORMER_DETECTORS else "sgd",
    )


def open_images(config: DetectConfig, spec: PixelSpec, hardware: Hardware) -> tuple[CocoImages, CocoImages, list[str]]:
    """The training and the test images, and lines on them and on options without an effect."""
    outlines = config.detector not in BOXES_ONLY
    with refusing_together(hardware):
        splits = (open_split(config.data, split, spec, outlines, config.orientation) for split in ("train", "test"))
        train, test = splits
        train.keep_fraction(config.fraction, config.seed)
        facts = check_splits(train, test)
    facts += [summarize_split(train, "training"), summarize_split(test, "test")]
    return train, test, facts + config.optimizer.without_effect()


def notes_of_run(config: DetectConfig, train: CocoImages, spec: PixelSpec) -> DetectorNotes:
    """The detector to build."""
    found = (tuple(config.anchor_sizes), config.detections_per_image, spec.window)
    return DetectorNotes(
        config.detector,
        str(config.backbone),
        tuple(train.category_ids),
        tuple(train.category_names),
        config.test_size,
        spec.mean,
        spec.std,
        *found,
        int(median(min(train.size(i)) for i in range(len(train)))),  # as tested: whole, also if trained on crops
        config.orientation,
        training_mpp(train),
        spec.bits,
    )


def load_backbone(model: Detector, config: DetectConfig) -> str:
    """Load the initial weights of the backbone. Returns a line on them."""
    norms = filter_norms(model.backbone) if config.rescale_filters else {}
    line = load_weights(model.backbone, config.weights)
    if config.rescale_filters:
        line += f", {counted(len(set_filter_norms(model.backbone, norms)), 'layer')} rescaled"
    return line


def record_of_run(config: DetectConfig, hardware: Hardware, solver: Solver, spec: PixelSpec) -> dict[str, Any]:
    """The options of a run, with what was chosen automatically."""
    record = replace(config, precision=hardware.precision, lr=solver.lr).record()
    record |= {"mean": spec.mean, "std": spec.std} | ({} if spec.window == _WINDOW else {"window": spec.window})
    return record | ({} if spec.bits is None else {"bits": spec.bits})


def batches_of_run(config: DetectConfig, train: CocoImages, solver: Solver, hardware: Hardware) -> TrainingBatches:
    """The batches of this process."""
    return TrainingBatches(
        train,
        batch_size=config.batch_size,
        total_steps=solver.steps,
        seed=config.seed,
        sizes=config.train_size,
        crop=config.train_crop,
        rank=hardware.rank,
        world_size=hardware.world_size,
        workers=choose_workers(hardware) if config.workers is None else config.workers,
    )


def training_mpp(images: CocoImages) -> float | None:
    """The µm per pixel of images; None if they are unknown, or differ."""
    found = [images.mpp(position) for position in evenly_spaced(_SAMPLED, len(images))]
    known = [mpp for mpp in found if mpp is not None]
    same = len(known) == len(found) and same_mpp(max(known), min(known))
    return float(median(known)) if same else None


def recorded_pixels(config: dict[str, Any], out: Path) -> PixelSpec:
    """The specification of the pixels of a detector's run.

    Raises:
        UserError: the configuration has none that is valid.
    """
    recorded = {"window": list(_WINDOW)}
    recorded |= {name: config[name] for name in ("mean", "std", "window", "bits") if name in config}
    try:
        return PixelSpec.from_record(recorded | {"channels": len(recorded["mean"])})
    except (UserError, TypeError) as error:
        raise UserError(f"the run in {out} has no mean and std of its channels; start it again") from error
