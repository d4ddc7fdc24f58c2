"""Training a detector to its end: the steps, then the batch norms' statistics."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from densepath.nets.norms import synchronize_batch_norm
from densepath.runs.progress import say
from densepath.training.hardware import Hardware
from densepath.training.intervals import Intervals
from densepath.training.loop import train
from densepath.training.random_state import seed_generators
from densepath.transfer.detection.detection_task import DetectionTask
from densepath.transfer.detection.detector import Detector
from densepath.transfer.detection.detector_file import DetectorNotes
from densepath.transfer.detection.precise_norm import precise_batch_norm
from densepath.transfer.detection.samples import SampleBatch, TrainingBatches, into_detector
from densepath.transfer.detection.solver import Solver


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
) -> Detector:
    """Train a detector, or what is left of its training.

    Args:
        model: is changed.
        notes: say how it is shown images.
        solver: how it is trained.
        batches: this process's.
        out, hardware, intervals, config, resume: as for :func:`~densepath.training.loop.train`.
        seed: of what the detector samples.

    Returns:
        The trained detector on this process's device, with batch norms that need no other process.
    """
    if hardware.world_size > 1:
        synchronize_batch_norm(model)
    train(
        DetectionTask(model, notes, solver, hardware.memory_format),
        batches,
        out,
        hardware=hardware,
        intervals=intervals,
        config=config,
        facts={"images": len(batches.images), "steps": solver.steps, "processes": hardware.world_size},
        seed=seed,
        resume=resume,
        equal_shapes=False,
        name=out.name,
    )
    trained = notes.build()
    trained.load_state_dict(model.state_dict())
    return trained.to(hardware.device)


def settle_batch_norm(
    model: Detector, notes: DetectorNotes, batches: TrainingBatches, hardware: Hardware, seed: int
) -> None:
    """Give the batch norms the mean statistics of training batches; in a head, those of boxes drawn as in training.

    Nothing is done for a detector that has none.

    Args:
        model: on its device.
        notes: say how it is shown images.
        batches: of training, whole ones: this runs on one process.
        hardware: names the precision.
        seed: of the boxes that are drawn.
    """
    if not any(isinstance(module, _BatchNorm) for module in model.modules()):
        return
    say(f"densepath: batch-norm statistics from {len(batches)} training batches")

    # The generators stand elsewhere in a run that was cut off after its last step.
    seed_generators(seed, rank=0)

    def show(batch: SampleBatch) -> None:
        images, targets = into_detector(batch.samples, notes.spec, hardware.device)
        images.tensors = images.tensors.contiguous(memory_format=hardware.memory_format)
        with torch.autocast(hardware.kind, torch.bfloat16, enabled=hardware.precision == "bf16-mixed"):
            model.run_batch_norms(images, targets)

    precise_batch_norm(model, batches, show)
