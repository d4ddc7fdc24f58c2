"""Training a classifier as a task of the training loop."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from densepath.sources.batch import ImageBatch
from densepath.training.optimizers import Optimizer
from densepath.transfer.best_epoch import BestEpochTask
from densepath.transfer.classify.classifier import Classifier, probabilities
from densepath.transfer.classify.config import Choice
from densepath.transfer.classify.label_scores import macro_auc
from densepath.transfer.classify.targets import Targets
from densepath.transfer.probe.metrics import Integers
from densepath.views.maker import ViewMaker
from densepath.views.view import Batch

VIEW, TARGET = "image", "target"
# Positions (V,) of the validation images that can be read, and their logits (V, T), on the CPU.
Validate = Callable[[], tuple[Integers, Tensor]]


class Objective:
    """The loss: cross-entropy for classes, binary cross-entropy for each known label.

    Sums are divided by numbers of the whole training set, not of the batch, so that several processes minimize what one
    does.

    Args:
        targets: of the training images.
        balanced: whether classes weigh by the inverse of their frequency: the mean weight of an image is 1. Of several
            labels, each present one weighs by the number of images without this label over that of images with it: this
            has no upper limit.
    """

    def __init__(self, targets: Targets, balanced: bool = False) -> None:
        matrix = targets.matrix()
        self.exclusive = targets.exclusive
        known, present = (~np.isnan(matrix)).sum(0), np.maximum(np.nansum(matrix, 0), 1)
        self.known = float(known.sum() / matrix.size)  # share of labels
        weights = np.ones(matrix.shape[1])
        if balanced:
            weights = (
                len(matrix) / (len(weights) * present) if self.exclusive else np.maximum(known - present, 1) / present
            )
        self.weights = torch.from_numpy(weights).float()

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The loss of logits (B, T) and targets (B, 1) or (B, T)."""
        self.weights = weights = self.weights.to(logits.device)
        if self.exclusive:
            classes = targets[:, 0].long()
            return (F.cross_entropy(logits, classes, reduction="none") * weights[classes]).mean()
        known = ~targets.isnan()
        losses = F.binary_cross_entropy_with_logits(logits, targets.nan_to_num(), pos_weight=weights, reduction="none")
        return (losses * known).sum() / (targets.numel() * self.known)


class ClassifyTask(BestEpochTask):
    """Trains a classifier; the score of its epochs is the macro AUC.

    Args:
        model: the classifier.
        views: makes the training views.
        objective: the loss.
        optimizer, total_steps, steps_per_epoch, patience: as for :class:`BestEpochTask`.
        freeze: train only the linear layer.
        validation: targets of the validation images.
        validate: the logits of the validation images.
        choose: what a better epoch has.
    """

    def __init__(
        self,
        model: Classifier,
        views: ViewMaker,
        objective: Objective,
        optimizer: Optimizer,
        total_steps: int,
        steps_per_epoch: int,
        *,
        freeze: bool,
        validation: Targets,
        validate: Validate,
        choose: Choice = "auc",
        patience: int = 0,
    ) -> None:
        frozen, kept, by_loss = model.encoder if freeze else None, model.head if freeze else model, choose == "loss"
        length = total_steps, steps_per_epoch
        super().__init__(model, optimizer, *length, frozen=frozen, kept=kept, by_loss=by_loss, patience=patience)
        self._views, self._objective = views, objective
        self._validation, self._validate = validation, validate

    def inputs(self, batch: ImageBatch) -> Batch:
        return self._views(batch.to(self.device))

    def forward(self, inputs: Batch) -> dict[str, Tensor | float]:
        """The loss, and the number of epochs done before this batch."""
        loss = self._objective(self.model(inputs[VIEW].pixels), inputs.extras[TARGET])
        return {"loss": loss, "epoch": inputs.epoch}

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Score the validation images after an epoch; the weights are kept if no earlier ones were better."""
        read, logits = self._validate()
        targets = self._validation.take(read)
        loss = float(self._objective(logits, torch.from_numpy(targets.values).float()))
        score = macro_auc(targets, probabilities(logits.numpy(), targets.exclusive))
        self.keep_if_better(score, loss)
        return {"validation_loss": loss, "validation_auc": score}
