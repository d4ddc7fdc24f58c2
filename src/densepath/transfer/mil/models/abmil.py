"""ABMIL: a mean of tiles weighted by attention, with or without a gate."""

from __future__ import annotations

from torch import Tensor, nn

from densepath.transfer.mil.models.base import BagModel, GatedAttention, Solver, softmax_over_tiles


class ABMIL(BagModel):
    """Attention-based multiple-instance learning.

    Args:
        dim: D.
        outputs: K.
        embedding, hidden: sizes of the embedding of a tile, and of the attention's hidden layer.

    Source: Ilse, Tomczak, Welling, ICML 2018, equations 7 and 8; its settings for histology.
    """

    solver = Solver(1e-4, 5e-4)
    gated = False

    def __init__(self, dim: int, outputs: int, embedding: int = 512, hidden: int = 128) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(dim, embedding), nn.ReLU())
        self.attention = GatedAttention(embedding, hidden, self.gated)
        self.classifier = nn.Linear(embedding, outputs)

    def forward(self, bag: Tensor) -> tuple[Tensor, Tensor]:
        embedded = self.embed(bag)
        attention = softmax_over_tiles(self.attention(embedded)[0])
        return self.classifier(attention.to(embedded.dtype) @ embedded).float(), attention


class GatedABMIL(ABMIL):
    """:class:`ABMIL` with a gate in its attention (equation 9)."""

    gated = True
