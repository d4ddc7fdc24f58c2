"""One training of a classifier or a segmenter, with the batches of its images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from densepath.sources.fingerprint import fingerprint
from densepath.sources.loader import DrawViews, ImageBatches
from densepath.sources.per_image import PerBox, PerImage
from densepath.sources.pixel_source import PixelSource
from densepath.training.hardware import Hardware, choose_workers
from densepath.training.intervals import Intervals
from densepath.training.loop import train
from densepath.transfer.best_epoch import BestEpochTask
from densepath.transfer.classify.config import ClassifyConfig
from densepath.transfer.segment.config import SegmentConfig


def batches_of_training(
    config: ClassifyConfig | SegmentConfig,
    images: PixelSource,
    hardware: Hardware,
    seed: int,
    draw: DrawViews,
    extras: Mapping[str, PerImage | PerBox],
) -> ImageBatches:
    """The batches of all epochs, as large as the images allow."""
    together = min(config.batch_size, len(images))
    return ImageBatches(
        images,
        batch_size=together // hardware.world_size,
        seed=seed,
        epochs=config.epochs,
        rank=hardware.rank,
        world_size=hardware.world_size,
        workers=choose_workers(hardware) if config.workers is None else config.workers,
        device=hardware.device,
        draw=draw,
        extras=extras,
    )


def train_best(
    task: BestEpochTask,
    batches: ImageBatches,
    out: Path,
    config: ClassifyConfig | SegmentConfig,
    free: tuple[str, ...],
    hardware: Hardware,
    seed: int,
    *,
    annotations: str,
    every: int = 1,
) -> dict[str, Any]:
    """Train, or continue a training that was stopped, and give the model the weights of its best epoch.

    Args:
        task, batches, config, hardware, seed: of the training.
        out: its folder.
        free: options that may change when it continues.
        annotations: a digest of what the images are labelled with.
        every: epochs between two validations.

    Returns:
        What is noted of the weights.
    """
    facts: dict[str, int | str] = {
        "images": len(batches.images),
        "steps": batches.total_steps,
        "processes": hardware.world_size,
        "annotations": annotations,
        **fingerprint(batches.images),
    }
    evaluate_every = batches.steps_per_epoch * every
    train(
        task,
        batches,
        out,
        hardware=hardware,
        intervals=Intervals(config.log_every, config.save_every_steps, config.save_every_minutes, evaluate_every),
        config=config.record(),
        facts=facts,
        free=free,
        seed=seed,
        resume=True,
        evaluate=task.evaluate,
        name=out.name,
    )
    return task.restore_chosen()
