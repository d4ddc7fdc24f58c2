"""Fine-tuning a detector as a task of the training loop."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.lr_scheduler import LambdaLR
from torchvision.models.detection.image_list import ImageList

from densepath.training.optimizers import frozen_parameters, limit_updates, split_frozen
from densepath.training.task import Task
from densepath.training.update_limits import NO_LIMITS, UpdateLimits
from densepath.training.updates import Updates
from densepath.transfer.detection.detector import Detector
from densepath.transfer.detection.detector_file import DetectorNotes
from densepath.transfer.detection.layer_decay import layer_groups
from densepath.transfer.detection.samples import SampleBatch, into_detector
from densepath.transfer.detection.solver import Solver

Inputs = tuple[ImageList, list[dict[str, Tensor]]]

_MOMENTUM = 0.9
_WEIGHT_DECAY = 1e-4
_BETAS = (0.9, 0.999)


class DetectionTask(Task):
    """Passes samples to a detector and minimizes the sum of its losses.

    Args:
        model: the detector to train.
        notes: have the specification of its pixels.
        solver: the optimizer and its schedule.
        limits: clipping of gradients, and frozen parameters.
        steps_per_epoch: number of steps in which all images are shown.
        memory_format: memory layout of the images.
    """

    def __init__(
        self,
        model: Detector,
        notes: DetectorNotes,
        solver: Solver,
        limits: UpdateLimits = NO_LIMITS,
        steps_per_epoch: float = 1.0,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> None:
        super().__init__()
        self.model = model
        self.notes, self.solver, self.memory_format = notes, solver, memory_format
        self.limits, self.steps_per_epoch = limits, steps_per_epoch

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return next(self.model.parameters()).device

    def updates(self) -> Updates:
        """SGD or AdamW, with a learning rate that changes at each step."""
        optimizer: torch.optim.Optimizer
        frozen = set(frozen_parameters(self.model, self.limits.freeze))
        if self.solver.optimizer == "adamw":
            features: Any = self.model.features
            groups = split_frozen(layer_groups(self.model, features.transformer, self.solver.lr), frozen)
            optimizer = torch.optim.AdamW(groups, betas=_BETAS, fused=True)
        else:
            groups = split_frozen(parameter_groups(self.model), frozen)
            optimizer = torch.optim.SGD(groups, self.solver.lr, _MOMENTUM, weight_decay=_WEIGHT_DECAY, fused=True)
        schedule = LambdaLR(optimizer, self.solver.factor)
        return limit_updates(self.model, optimizer, schedule, self.limits, self.steps_per_epoch)

    def inputs(self, batch: SampleBatch) -> Inputs:
        images, targets = into_detector(batch.samples, self.notes.spec, self.device)
        images.tensors = images.tensors.contiguous(memory_format=self.memory_format)
        return images, targets

    def forward(self, inputs: Inputs) -> dict[str, Tensor | float]:
        """The sum of the losses, and each of them."""
        losses = self.model(*inputs)
        return {"loss": torch.stack(list(losses.values())).sum(), **losses}


def parameter_groups(model: nn.Module) -> list[dict[str, Any]]:
    """All parameters: those with weight decay, and those of batch norms, without it."""
    norms = {id(p) for m in model.modules() if isinstance(m, _BatchNorm) for p in m.parameters(recurse=False)}
    return [
        {"params": [p for p in model.parameters() if id(p) not in norms]},
        {"params": [p for p in model.parameters() if id(p) in norms], "weight_decay": 0.0},
    ]
