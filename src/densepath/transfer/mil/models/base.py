"""What all models of bags share: a bag of tiles -> outputs and the attention of its tiles."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Solver:
    """How a model is trained by default.

    Args:
        lr, weight_decay, betas: of the optimizer; the decay is Adam's (added to the gradient), as in all of the papers.
        epochs: passes over the training bags.
        schedule: "constant", or "cosine" to ``last_lr``, which changes after each epoch.
        last_lr: the rate that the cosine ends at.
        optimizer: "adam" or "radam".
        bags: bags per step.
    """

    lr: float
    weight_decay: float
    epochs: int = 50
    betas: tuple[float, float] = (0.9, 0.999)
    schedule: Literal["constant", "cosine"] = "constant"
    last_lr: float = 0.0
    optimizer: Literal["adam", "radam"] = "adam"
    bags: int = 1


class Standardization(nn.Module):
    """Features with mean 0 and standard deviation 1 over all tiles of the training bags.

    Args:
        mean, scale: (D,) those of the features; features are divided by ``scale``.
    """

    def __init__(self, mean: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.mean: Tensor
        self.scale: Tensor
        self.register_buffer("mean", mean.float())
        self.register_buffer("scale", scale.float())

    def forward(self, tiles: Tensor) -> Tensor:
        """(N, D) float32, of features in any precision."""
        return (tiles.float() - self.mean) / self.scale


class BagModel(nn.Module):
    """A network that maps a bag of any number of tiles to the outputs of its slide or patient.

    Attributes:
        standardization: what is done to the features before the network sees them, and before they are rounded to
            bfloat16; models that take features as they are have none.
        solver: the defaults of its training.
        streams: weights of the losses of its streams of outputs; most models have one stream.
        exclusive: whether classes exclude each other (softmax), or each has a sigmoid of its own.
        takes_stored: whether the model takes features as they are stored, and prepares them itself.
    """

    solver: ClassVar[Solver]
    streams: ClassVar[tuple[float, ...]] = (1.0,)
    exclusive: ClassVar[bool] = True
    takes_stored: ClassVar[bool] = False
    standardization: Standardization

    @property
    def prepare(self) -> Standardization | None:
        """The standardization, if the model has one."""
        return getattr(self, "standardization", None)

    @abstractmethod
    def forward(self, bag: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs and attention.

        Args:
            bag: (N, D) the features of the tiles.

        Returns:
            (K,) outputs before the softmax or sigmoid, and the attention of the tiles, (N,) or, with one for each
            output, (K, N); it sums to 1 over the tiles, except where a model says otherwise.
        """

    def training_outputs(self, bag: Tensor, label: int | None) -> tuple[Tensor, Tensor | None]:
        """The outputs (S, K) of S streams, and a further loss of tiles; ``label`` is the class, or None."""
        return self(bag)[0][None], None


class GatedAttention(nn.Module):
    """Attention of tiles: w^T (tanh(V h) * sigmoid(U h)), or without the gate w^T tanh(V h).

    Args:
        dim, hidden: size of an embedding, and of the hidden layer.
        gated: whether there is a gate.
        dropout: of the hidden layer.
        outputs: numbers of attention for each tile.

    Source: Ilse et al., ICML 2018, equations 8 and 9; dropout and several outputs as in CLAM.
    """

    def __init__(self, dim: int, hidden: int, gated: bool = True, dropout: float = 0.0, outputs: int = 1) -> None:
        super().__init__()
        self.value = nn.Linear(dim, hidden)
        self.gate = nn.Linear(dim, hidden) if gated else None
        self.dropout = nn.Dropout(dropout)
        self.score = nn.Linear(hidden, outputs)

    def forward(self, embedded: Tensor) -> Tensor:
        """(outputs, N) scores before the softmax, of embeddings (N, dim)."""
        hidden = self.dropout(self.value(embedded).tanh())
        if self.gate is not None:
            hidden = hidden * self.dropout(self.gate(embedded).sigmoid())
        return self.score(hidden).T.float()


def softmax_over_tiles(scores: Tensor) -> Tensor:
    """Attention that sums to 1 over the last dimension, in full precision."""
    return torch.softmax(scores.float(), -1)


@torch.no_grad()
def initialize(network: nn.Module, weight: Literal["orthogonal", "xavier_normal"]) -> None:
    """Draw the weights of linear and convolutional layers; biases are 0."""
    draw = nn.init.orthogonal_ if weight == "orthogonal" else nn.init.xavier_normal_
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv1d):
            draw(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
