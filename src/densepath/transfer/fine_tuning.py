"""Training a detector to its end: the steps, then the batch norms' statistics."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from densepath.nets.norms import synchronize_batch_norm
from densepath.training.fit import fit
from densepath.training.hardware import Hardware
from densepath.training.progress import say
from densepath.training.run_callback import Rhythm
from densepath.transfer.detection_module import DetectionModule
from densepath.transfer.detector_file import DetectorNotes
from densepath.transfer.mask_rcnn import MaskRCNN
from densepath.transfer.precise_norm import precise_batch_norm
from densepath.transfer.samples import SampleBatch, TrainingBatches, into_detector
from densepath.transfer.solver import Solver


def fine_tune(
    model: MaskRCNN,
    notes: DetectorNotes,
    solver: Solver,
    batches: TrainingBatches,
    out: Path,
    *,
    hardware: Hardware,
    rhythm: Rhythm,
    config: Mapping[str, Any],
    seed: int,
    resume: bool,
) -> MaskRCNN:
    """Train a detector, or what is left of its training.

    Args:
        model: is changed.
        notes: say how it is shown images.
        solver: how it is trained.
        batches: this process's.
        out, hardware, rhythm, config, resume: as for :func:`~densepath.training.fit.fit`.
        seed: of what the detector samples.

    Returns:
        The trained detector on this process's device, with batch norms that need no other process.
    """
    if hardware.world_size > 1:
        synchronize_batch_norm(model)
    module = DetectionModule(model, notes, solver, hardware.memory_format)
    fit(
        module,
        batches,
        out,
        hardware=hardware,
        rhythm=rhythm,
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


def settle_batch_norm(model: MaskRCNN, notes: DetectorNotes, batches: TrainingBatches, hardware: Hardware) -> None:
    """Give the batch norms the mean statistics of training batches.

    Args:
        model: on its device.
        notes: say how it is shown images.
        batches: of training, whole ones: this runs on one process.
        hardware: names the precision.
    """
    say(f"densepath: batch-norm statistics from {len(batches)} training batches")

    def show(batch: SampleBatch) -> None:
        images, _ = into_detector(batch.samples, notes.mean, notes.std, hardware.device)
        with torch.autocast(hardware.kind, torch.bfloat16, enabled=hardware.precision == "bf16-mixed"):
            model.pyramid(images.tensors.contiguous(memory_format=hardware.memory_format))

    precise_batch_norm(model.pyramid, batches, show)
