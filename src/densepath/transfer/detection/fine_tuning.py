"""Trains a detector, and then computes the statistics of its batch norms."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from densepath.annotations.coco import CocoImages
from densepath.core.digests import digest_of, digest_of_file
from densepath.core.errors import counted
from densepath.nets.norms import synchronize_batch_norm
from densepath.runs.progress import say
from densepath.sources.fingerprint import digest_of_samples, digest_of_sizes
from densepath.training.hardware import Hardware
from densepath.training.intervals import Intervals
from densepath.training.loop import train
from densepath.training.random_state import seed_generators
from densepath.training.update_limits import NO_LIMITS, UpdateLimits
from densepath.transfer.detection.config import FREE
from densepath.transfer.detection.detection_task import DetectionTask
from densepath.transfer.detection.detector import Detector
from densepath.transfer.detection.detector_file import DetectorNotes
from densepath.transfer.detection.precise_norm import precise_batch_norm
from densepath.transfer.detection.samples import SampleBatch, TrainingBatches, into_detector
from densepath.transfer.detection.solver import Solver

_SAMPLED = 1024  # files whose contents are sampled


def fine_tune(
    model: Detector,
    notes: DetectorNotes,
    solver: Solver,
    batches: TrainingBatches,
    out: Path,
    *,
    hardware: Hardware,
    intervals: Intervals,
    config: Mapping[str, Any],
    seed: int,
    resume: bool,
    limits: UpdateLimits = NO_LIMITS,
) -> Detector:
    """Train a detector, or resume its training.

    Args:
        model: the detector to train; it is changed.
        notes: have the specification of its pixels.
        solver: the optimizer and its schedule.
        batches: the batches of this process.
        out, hardware, intervals, config, resume: as for :func:`~densepath.training.loop.train`.
        seed: seed of the samples of the detector.
        limits: clipping of gradients, and frozen parameters.

    Returns:
        The trained detector on this process's device, with batch norms that do not need other processes.
    """
    if hardware.world_size > 1:
        synchronize_batch_norm(model)
    steps_per_epoch = len(batches.images) / batches.batch_size
    train(
        DetectionTask(model, notes, solver, limits, steps_per_epoch, hardware.memory_format),
        batches,
        out,
        hardware=hardware,
        intervals=intervals,
        config=config,
        facts={
            "images": len(batches.images),
            "steps": solver.steps,
            "processes": hardware.world_size,
            **_digests(batches.images),
        },
        free=FREE,
        seed=seed,
        resume=resume,
        equal_shapes=False,
        name=out.name,
    )
    trained = notes.build()
    trained.load_state_dict(model.state_dict())
    return trained.to(hardware.device)


def _digests(images: CocoImages) -> dict[str, str]:
    """Digests by which a resumed run knows its images and their annotations."""
    names = [image["file_name"] for image in images.coco_ground_truth()["images"]]
    files = [images.folder / name for name in names]
    found = {"names": digest_of(names), "annotations": digest_of_file(images.annotations)}
    return found | {"sizes": digest_of_sizes(files), "samples": digest_of_samples(files[:_SAMPLED])}


def settle_batch_norm(
    model: Detector, notes: DetectorNotes, batches: TrainingBatches, hardware: Hardware, seed: int
) -> None:
    """Set the statistics of batch norms to the mean over training batches; in a head, over boxes drawn as in training.

    Does nothing for a detector without batch norms.

    Args:
        model: the detector, on its device.
        notes: have the specification of its pixels.
        batches: whole training batches, because this runs on one process.
        hardware: has the device and the precision.
        seed: seed of the boxes that are drawn.
    """
    if not any(isinstance(module, _BatchNorm) for module in model.modules()):
        return
    say(f"densepath: batch-norm statistics from {counted(len(batches), 'training batch', 'training batches')}")

    # In a run that was interrupted after its last step the generators have another state.
    seed_generators(seed, rank=0)

    def show(batch: SampleBatch) -> None:
        images, targets = into_detector(batch.samples, notes.spec, hardware.device)
        images.tensors = images.tensors.contiguous(memory_format=hardware.memory_format)
        with torch.autocast(hardware.kind, torch.bfloat16, enabled=hardware.precision == "bf16-mixed"):
            model.run_batch_norms(images, targets)

    precise_batch_norm(model, batches, show)
