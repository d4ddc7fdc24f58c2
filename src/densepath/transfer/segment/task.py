"""Training a segmenter as a task of the training loop; it keeps the weights of its best epoch."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from densepath.sources.batch import ImageBatch
from densepath.training.optimizers import Optimizer, build_updates
from densepath.training.task import Task
from densepath.training.updates import Updates
from densepath.transfer.segment.config import Choice, Loss
from densepath.transfer.segment.loss import segmentation_loss
from densepath.transfer.segment.network import SegmentationNet
from densepath.transfer.segment.patches import PatchMaker

# The mean Dice, from 0 to 1, and the mean loss of the validation images.
Validate = Callable[[], tuple[float, float]]


class SegmentTask(Task):
    """Trains a segmenter, and keeps a copy of it from the epoch that was best on the validation images.

    It never sees a test image.

    Args:
        model: the segmenter.
        patches: makes the training patches.
        optimizer: the optimizer and its schedule.
        total_steps, steps_per_epoch: of the run.
        loss: what is minimized.
        freeze: train only what follows the backbone.
        validate: scores the validation images.
        every: epochs between two validations.
        choose: what a better epoch has.
        patience: epochs without a better one after which the run ends; 0 for never.
    """

    def __init__(
        self,
        model: SegmentationNet,
        patches: PatchMaker,
        optimizer: Optimizer,
        total_steps: int,
        steps_per_epoch: int,
        *,
        loss: Loss,
        freeze: bool,
        validate: Validate,
        every: int = 1,
        choose: Choice = "dice",
        patience: int = 0,
    ) -> None:
        super().__init__()
        self.model = model
        self.freeze = freeze
        if freeze:
            model.backbone.requires_grad_(False)
        self.chosen = deepcopy(model).requires_grad_(False)
        self._patches, self._optimizer, self._loss = patches, optimizer, loss
        self._total_steps, self._steps_per_epoch = total_steps, steps_per_epoch
        self._validate, self._every, self._choose, self._patience = validate, every, choose, patience
        # Epochs done; of the weights that are kept: epoch from 1, 0 for none, mean Dice in percent, and loss.
        self.register_buffer("record", torch.zeros(4, dtype=torch.float64))
        self.record: Tensor

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return next(self.model.parameters()).device

    def train(self, mode: bool = True) -> SegmentTask:
        """Frozen backbones stay in evaluation mode: their batch norms keep their statistics."""
        super().train(mode)
        self.chosen.eval()
        if self.freeze:
            self.model.backbone.eval()
        return self

    def updates(self) -> Updates:
        return build_updates(self.model, self._optimizer, self._total_steps, self._steps_per_epoch)

    def inputs(self, batch: ImageBatch) -> tuple[Tensor, Tensor, float]:
        """Pixels, classes, and the epochs done before this batch."""
        return *self._patches(batch.to(self.device)), batch.epoch

    def forward(self, inputs: tuple[Tensor, Tensor, float]) -> dict[str, Tensor | float]:
        """The loss, and the number of epochs done before this batch."""
        pixels, classes, epoch = inputs
        return {"loss": segmentation_loss(self.model(pixels), classes, self._loss), "epoch": epoch}

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Score the validation images; the weights are kept if no earlier ones were better.

        Of equal Dice the lower loss decides.
        """
        dice, loss = self._validate()
        score = 100 * dice
        self.record[0] += self._every
        done, epoch, best, lowest = self.record.tolist()
        better = (score, -loss) > (best, -lowest) if self._choose == "dice" else loss < lowest
        if not epoch or better:
            self.chosen.load_state_dict(self.model.state_dict())
            self.record[1:] = torch.tensor([done, score, loss])
        return {"validation_loss": loss, "validation_dice": score}

    def finished(self) -> bool:
        done, epoch = self.record[:2].tolist()
        return bool(self._patience and epoch and done - epoch >= self._patience)

    def restore_chosen(self) -> dict[str, Any]:
        """Give the model the weights that were kept, and return what is noted of them."""
        self.model.load_state_dict(self.chosen.state_dict())
        _, epoch, score, loss = self.record.tolist()
        return {"epoch": int(epoch), "score": score, "loss": loss}
