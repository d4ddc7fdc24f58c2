"""Pre-training as a task of the training loop."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from densepath.methods.base import Method
from densepath.sources.batch import ImageBatch
from densepath.training.feature_pass import FeaturePass
from densepath.training.optimizers import Optimizer, build_updates
from densepath.training.sharding import whole
from densepath.training.task import LongWork, Task
from densepath.training.updates import Updates
from densepath.training.validation import Patience, Validation
from densepath.views.maker import ViewMaker
from densepath.views.view import Batch


class PretrainTask(Task):
    """Makes the views of a batch, passes them to a method, and minimizes its loss.

    Args:
        method: the method to train.
        views: makes the method's views.
        optimizer: the optimizer and its schedule.
        total_steps: number of optimizer steps of the whole run.
        steps_per_epoch: number of optimizer steps in an epoch.
        feature_pass: extracts the features of all images for a method that asks for them.
        patience: ends the run early; None for a run without held-out images.

    Attributes:
        epoch, progress: those of the first batch of a step. All its batches have them in the method, so that whatever
            depends on the position in the run changes between steps.
    """

    def __init__(
        self,
        method: Method,
        views: ViewMaker,
        optimizer: Optimizer,
        total_steps: int,
        steps_per_epoch: float,
        feature_pass: FeaturePass | None = None,
        patience: Patience | None = None,
    ) -> None:
        super().__init__()
        self.method = method
        self.make_views = views
        self.optimizer_settings = optimizer
        self.total_steps = total_steps
        self.steps_per_epoch = steps_per_epoch
        self.feature_pass = feature_pass
        self.patience = patience
        self.epoch = self.progress = 0.0

    @property
    def device(self) -> torch.device:
        """The device of the method."""
        return next(self.method.parameters()).device

    def updates(self) -> Updates:
        return build_updates(self.method, self.optimizer_settings, self.total_steps, self.steps_per_epoch)

    def inputs(self, batch: ImageBatch) -> Batch:
        return self.make_views(batch.to(self.device))

    def before_step(self, inputs: Batch, long_work: LongWork) -> None:
        self.epoch, self.progress = inputs.epoch, inputs.progress
        if self.feature_pass is not None and self.method.wants_features(inputs):
            with long_work() as heartbeat, whole(self):
                self.method.on_features(self.feature_pass(self.method, self.device, heartbeat), inputs, heartbeat)
        self.method.before_step(inputs)

    def forward(self, inputs: Batch) -> dict[str, Tensor | float]:
        """The loss, its terms and the method's statistics, and the number of epochs done before this batch."""
        losses = self.method(inputs.at(self.epoch, self.progress))
        chance = {name: value for name, value in self.method.chance().items() if name in losses.terms}
        relative = {f"{name}_vs_chance": losses.terms[name] / value for name, value in chance.items()}
        return {"loss": losses.total, **losses.terms, **relative, **losses.statistics, "epoch": inputs.epoch}

    def validate(self, validation: Validation) -> dict[str, float]:
        """The loss of held-out images, at the epoch and progress of the last step."""
        return validation(self.epoch, self.progress)

    def warnings(self, row: Mapping[str, float], last: bool) -> list[str]:
        return self.method.warnings(row, last)

    def finished(self) -> bool:
        return self.patience is not None and self.patience.ended()

    def is_best(self) -> bool:
        return self.patience is not None and int(self.patience.since) == 0

    def after_backward(self) -> None:
        self.method.after_backward()

    def after_step(self) -> None:
        self.method.after_step()
