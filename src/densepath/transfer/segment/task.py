"""Training a segmenter as a task of the training loop."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from densepath.sources.batch import ImageBatch
from densepath.training.optimizers import Optimizer
from densepath.transfer.best_epoch import BestEpochTask
from densepath.transfer.segment.config import Choice, Loss
from densepath.transfer.segment.loss import segmentation_loss
from densepath.transfer.segment.network import SegmentationNet
from densepath.transfer.segment.patches import PatchMaker

# The mean Dice, from 0 to 1, and the mean loss of the validation images.
Validate = Callable[[], tuple[float, float]]


class SegmentTask(BestEpochTask):
    """Trains a segmenter; the score of its epochs is the mean Dice.

    Args:
        model: the segmenter.
        patches: makes the training patches.
        optimizer, total_steps, steps_per_epoch, every, patience: as for :class:`BestEpochTask`.
        loss: what is minimized.
        freeze: train only what follows the backbone.
        validate: scores the validation images.
        choose: what a better epoch has.
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
        frozen, by_loss = model.backbone if freeze else None, choose == "loss"
        length = total_steps, steps_per_epoch
        super().__init__(model, optimizer, *length, frozen=frozen, every=every, by_loss=by_loss, patience=patience)
        self._patches, self._loss, self._validate = patches, loss, validate

    def inputs(self, batch: ImageBatch) -> tuple[Tensor, Tensor, float]:
        """Pixels, classes, and the epochs done before this batch."""
        return *self._patches(batch.to(self.device)), batch.epoch

    def forward(self, inputs: tuple[Tensor, Tensor, float]) -> dict[str, Tensor | float]:
        """The loss, and the number of epochs done before this batch."""
        pixels, classes, epoch = inputs
        return {"loss": segmentation_loss(self.model(pixels), classes, self._loss), "epoch": epoch}

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Score the validation images; the weights are kept if no earlier ones were better."""
        dice, loss = self._validate()
        self.keep_if_better(100 * dice, loss)
        return {"validation_loss": loss, "validation_dice": 100 * dice}
