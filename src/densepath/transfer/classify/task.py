"""Training a classifier as a task of the training loop; it keeps the weights of its best epoch."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densepath.sources.batch import ImageBatch
from densepath.training.optimizers import Optimizer, build_updates
from densepath.training.task import Task
from densepath.training.updates import Updates
from densepath.transfer.classify.classifier import Classifier
from densepath.transfer.classify.config import Choice
from densepath.transfer.classify.label_scores import macro_auc
from densepath.transfer.classify.targets import Targets
from densepath.transfer.probe.metrics import Floats, Integers
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


class ClassifyTask(Task):
    """Trains a classifier, and keeps a copy of it from the epoch that was best on the validation images.

    It never sees a test image.

    Args:
        model: the classifier.
        views: makes the training views.
        objective: the loss.
        optimizer: the optimizer and its schedule.
        total_steps, steps_per_epoch: of the run.
        freeze: train only the linear layer.
        validation: targets of the validation images.
        validate: the logits of the validation images.
        choose: what a better epoch has.
        patience: epochs without a better one after which the run ends; 0 for never.
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
        super().__init__()
        self.model = model
        self.freeze = freeze
        if freeze:
            model.encoder.requires_grad_(False)
        self.chosen = deepcopy(self._trained).requires_grad_(False)
        self._views, self._objective, self._optimizer = views, objective, optimizer
        self._total_steps, self._steps_per_epoch = total_steps, steps_per_epoch
        self._validation, self._validate, self._choose, self._patience = validation, validate, choose, patience
        # Epochs done; of the weights that are kept: epoch from 1, 0 for none, macro AUC, and loss.
        self.register_buffer("record", torch.zeros(4, dtype=torch.float64))
        self.record: Tensor

    @property
    def _trained(self) -> nn.Module:
        return self.model.head if self.freeze else self.model

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return self.model.head.weight.device

    def train(self, mode: bool = True) -> ClassifyTask:
        """Frozen backbones stay in evaluation mode: their batch norms keep their statistics."""
        super().train(mode)
        self.chosen.eval()
        if self.freeze:
            self.model.encoder.eval()
        return self

    def updates(self) -> Updates:
        return build_updates(self.model, self._optimizer, self._total_steps, self._steps_per_epoch)

    def inputs(self, batch: ImageBatch) -> Batch:
        return self._views(batch.to(self.device))

    def forward(self, inputs: Batch) -> dict[str, Tensor | float]:
        """The loss, and the number of epochs done before this batch."""
        loss = self._objective(self.model(inputs[VIEW].pixels), inputs.extras[TARGET])
        return {"loss": loss, "epoch": inputs.epoch}

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Score the validation images after an epoch; the weights are kept if no earlier ones were better.

        Of equal AUCs the lower loss decides.
        """
        read, logits = self._validate()
        targets = self._validation.take(read)
        loss = float(self._objective(logits, torch.from_numpy(targets.values).float()))
        score = macro_auc(targets, _probabilities(logits, targets.exclusive))
        self.record[0] += 1
        done, epoch, best, lowest = self.record.tolist()
        better = (score, -loss) > (best, -lowest) if self._choose == "auc" else loss < lowest
        if not epoch or better:
            self.chosen.load_state_dict(self._trained.state_dict())
            self.record[1:] = torch.tensor([done, score, loss])
        return {"validation_loss": loss, "validation_auc": score}

    def finished(self) -> bool:
        done, epoch = self.record[:2].tolist()
        return bool(self._patience and epoch and done - epoch >= self._patience)

    def restore_chosen(self) -> dict[str, Any]:
        """Give the model the weights that were kept, and return what is noted of them."""
        self._trained.load_state_dict(self.chosen.state_dict())
        _, epoch, score, loss = self.record.tolist()
        return {"epoch": int(epoch), "score": score, "loss": loss}


def _probabilities(logits: Tensor, exclusive: bool) -> Floats:
    logits = logits.double()
    found: Floats = (logits.softmax(1) if exclusive else logits.sigmoid()).numpy()
    return found
