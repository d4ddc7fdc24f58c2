"""HIPT's slide aggregator: a small transformer over the tiles, and gated attention."""

from __future__ import annotations

from torch import Tensor, nn

from densepath.transfer.mil.models.base import BagModel, GatedAttention, Solver, softmax_over_tiles

_DIM = 192


class HIPT(BagModel):
    """The third stage of HIPT, for features of tiles or of regions.

    Its two transformer layers compare all tiles with each other: time grows with the square of their number. HIPT has
    some hundred regions of 4096 pixels in a slide. There are no positions, so the order of the tiles does not matter.

    Args:
        dim: D.
        outputs: K.
        dropout: of all parts.

    Source: Chen et al., CVPR 2022, and its released code (2-Weakly-Supervised-Subtyping): lr 2e-4, 20 epochs, weight
    decay 1e-5, and 32 bags per step.
    """

    solver = Solver(2e-4, 1e-5, 20, bags=32)

    def __init__(self, dim: int, outputs: int, dropout: float = 0.25) -> None:
        super().__init__()

        def dense(size: int) -> nn.Sequential:
            return nn.Sequential(nn.Linear(size, _DIM), nn.ReLU(), nn.Dropout(dropout))

        self.embed = dense(dim)
        layer = nn.TransformerEncoderLayer(_DIM, 3, _DIM, dropout, batch_first=True)
        self.transformer = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.attention = GatedAttention(_DIM, _DIM, True, dropout)
        self.combine = dense(_DIM)
        self.classifier = nn.Linear(_DIM, outputs)

    def forward(self, bag: Tensor) -> tuple[Tensor, Tensor]:
        embedded = self.transformer(self.embed(bag)[None])[0]
        attention = softmax_over_tiles(self.attention(embedded)[0])
        return self.classifier(self.combine(attention.to(embedded.dtype) @ embedded)).float(), attention
