"""What outputs are trained to predict: classes, a number, or survival. Each is a loss, and the score of an epoch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from densepath.transfer.mil.choosing import macro_auc
from densepath.transfer.mil.number_scores import concordance
from densepath.transfer.probe.metrics import Floats


class Objective(ABC):
    """A loss of the outputs of some bags.

    Attributes:
        outputs: K, the number of outputs that it needs.
        bags: the least number of bags in a step.
    """

    outputs: int = 1
    bags: ClassVar[int] = 1

    @abstractmethod
    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss, a scalar.

        Args:
            outputs: (B, K).
            targets: (B, T), the targets of the bags.
        """

    @abstractmethod
    def answers(self, outputs: Tensor) -> Tensor:
        """(B, K) what outputs mean: probabilities, numbers, log risks."""

    @abstractmethod
    def score(self, answers: Floats, targets: Floats) -> float:
        """How good the answers for the validation cases are; higher is better."""


class Classification(Objective):
    """Cross-entropy of classes that exclude each other, or binary cross-entropy of a sigmoid for each.

    Args:
        classes: K.
        exclusive: softmax, or sigmoids.
        weights: (K,) factors of the loss of bags of a class; none by default.
    """

    def __init__(self, classes: int, exclusive: bool = True, weights: Tensor | None = None) -> None:
        self.outputs, self.exclusive = classes, exclusive
        self.weights = torch.ones(classes) if weights is None else weights

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        labels = targets[:, 0].long()
        if self.exclusive:
            losses = F.cross_entropy(outputs, labels, reduction="none")
        else:
            truth = F.one_hot(labels, self.outputs).to(outputs.dtype)
            losses = F.binary_cross_entropy_with_logits(outputs, truth, reduction="none").mean(1)
        return (losses * self.weights.to(outputs)[labels]).mean()

    def answers(self, outputs: Tensor) -> Tensor:
        """Probabilities of the classes; sigmoids do not sum to 1.

        Float64, as float32 has no numbers between 1 - 6e-8 and 1: bags of confident models would be ties.
        """
        exact = outputs.double()
        return exact.softmax(-1) if self.exclusive else exact.sigmoid()

    def score(self, answers: Floats, targets: Floats) -> float:
        """The mean AUC of the classes."""
        return macro_auc(answers, targets[:, 0].astype(np.int64))


class Regression(Objective):
    """Squared error of a number that is standardized over the training bags.

    Args:
        mean, scale: of the training bags.
    """

    def __init__(self, mean: float = 0.0, scale: float = 1.0) -> None:
        self.mean, self.scale = mean, scale

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return ((outputs[:, 0] - (targets[:, 0] - self.mean) / self.scale) ** 2).mean()

    def answers(self, outputs: Tensor) -> Tensor:
        """The number in its own unit."""
        return outputs * self.scale + self.mean

    def score(self, answers: Floats, targets: Floats) -> float:
        """Less the mean squared error."""
        return -float(((answers[:, 0] - targets[:, 0]) ** 2).mean())


class Survival(Objective):
    """Cox's negative partial log-likelihood of the bags in a step, Breslow's for ties; the output is the log risk.

    Targets are (time, whether the event was observed). A step without an event has a loss of 0.

    Source: Cox 1972; Breslow 1974.
    """

    bags = 32

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        risk, (time, event) = outputs[:, 0], targets.T
        at_risk = time[None] >= time[:, None]  # (B, B): who is under observation at the time of each
        hazard = torch.where(at_risk, risk[None], -torch.inf).logsumexp(1)
        return ((hazard - risk) * event).sum() / event.sum().clamp(min=1)

    def answers(self, outputs: Tensor) -> Tensor:
        """Log risks."""
        return outputs

    def score(self, answers: Floats, targets: Floats) -> float:
        """Harrell's concordance."""
        found = float(concordance(np.ones((1, len(targets))), targets[:, 0], targets[:, 1], answers[:, 0])[0])
        return found if np.isfinite(found) else 0.0
