"""Fine-tuning as a task of the training loop that keeps the weights of its best epoch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from densepath.training.optimizers import Optimizer, build_updates
from densepath.training.task import Task
from densepath.training.updates import Updates


def is_better(scores: Sequence[float], others: Sequence[float]) -> bool:
    """Whether the first score that differs from its counterpart is higher; NaN is below all numbers."""
    return ranked(scores) > ranked(others)


def ranked(scores: Sequence[float]) -> tuple[float, ...]:
    """Scores that can be compared: NaN is below all numbers."""
    return tuple(-math.inf if math.isnan(score) else score for score in scores)


class BestEpochTask(Task):
    """Trains a network, and keeps a copy of it from the epoch that was best on the validation images.

    It never sees a test image.

    Args:
        model: the network.
        optimizer: the optimizer and its schedule.
        total_steps, steps_per_epoch: of the run.
        frozen: a part of the network that is not trained; None for none.
        kept: what is copied; default: the network.
        every: epochs between two validations.
        by_loss: whether the lower loss is better; else the higher score, and of equal ones the lower loss.
        patience: epochs without a better one after which the run ends; 0 for never.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        total_steps: int,
        steps_per_epoch: int,
        *,
        frozen: nn.Module | None,
        kept: nn.Module | None = None,
        every: int = 1,
        by_loss: bool = False,
        patience: int = 0,
    ) -> None:
        super().__init__()
        self.model = model
        # In lists, so that they are not registered a second time
        self._frozen: Sequence[nn.Module] = [] if frozen is None else [frozen.requires_grad_(False)]
        self._kept = [model if kept is None else kept]
        self.chosen = deepcopy(self._kept[0]).requires_grad_(False)
        self._optimizer, self._total_steps, self._steps_per_epoch = optimizer, total_steps, steps_per_epoch
        self._every, self._by_loss, self._patience = every, by_loss, patience
        # Epochs done; of the weights that are kept: epoch from 1, 0 for none, score in percent, and loss.
        self.register_buffer("record", torch.zeros(4, dtype=torch.float64))
        self.record: Tensor

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return next(self.model.parameters()).device

    def train(self, mode: bool = True) -> BestEpochTask:
        """What is frozen stays in evaluation mode: its batch norms keep their statistics."""
        super().train(mode)
        self.chosen.eval()
        for part in self._frozen:
            part.eval()
        return self

    def updates(self) -> Updates:
        return build_updates(self.model, self._optimizer, self._total_steps, self._steps_per_epoch)

    def evaluate(self) -> dict[str, float]:
        """Score the validation images, call :meth:`keep_if_better`, and return what is logged."""
        raise NotImplementedError

    def keep_if_better(self, score: float, loss: float) -> None:
        """Note the score (in percent) and the loss of the validation images; keep the weights if none were better."""
        self.record[0] += self._every
        done, epoch, best, lowest = self.record.tolist()
        now, kept = ((-loss,), (-lowest,)) if self._by_loss else ((score, -loss), (best, -lowest))
        if not epoch or is_better(now, kept):
            self.chosen.load_state_dict(self._kept[0].state_dict())
            self.record[1:] = torch.tensor([done, score, loss], dtype=torch.float64)

    def finished(self) -> bool:
        done, epoch = self.record[:2].tolist()
        return bool(self._patience and epoch and done - epoch >= self._patience)

    def restore_chosen(self) -> dict[str, Any]:
        """Give the model the weights that were kept, and return what is noted of them."""
        self._kept[0].load_state_dict(self.chosen.state_dict())
        _, epoch, score, loss = self.record.tolist()
        return {"epoch": int(epoch), "score": score, "loss": loss}
