"""CLAM-SB: attention, and a classifier of the tiles with the highest and the lowest attention."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densepath.transfer.mil.models.base import BagModel, GatedAttention, Solver, initialize, softmax_over_tiles

_BAG = 0.7  # weight of the bag's loss
_MARGIN = 1.0


class CLAM(BagModel):
    """Clustering-constrained attention with a single branch.

    Of the tiles of a bag, the B with the highest attention should be of its class, and the B with the lowest should
    not: a classifier for each class learns this with the smooth SVM loss (temperature and margin 1). With more than two
    classes, which exclude each other, the B highest are also taught not to be of the other classes.

    Args:
        dim: D.
        outputs: K, classes.
        tiles: B.
        dropout: of embedding and attention.

    Source: Lu et al., Nature Biomedical Engineering 2021, and its released code: the small model.
    """

    solver = Solver(2e-4, 1e-5)
    streams = (_BAG,)

    def __init__(self, dim: int, outputs: int, tiles: int = 8, dropout: float = 0.25) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(dim, 512), nn.ReLU(), nn.Dropout(dropout))
        self.attention = GatedAttention(512, 256, True, dropout)
        self.classifier = nn.Linear(512, outputs)
        self.tile_classifiers = nn.ModuleList(nn.Linear(512, 2) for _ in range(outputs))
        self.tiles = tiles
        initialize(self, "xavier_normal")

    def forward(self, bag: Tensor) -> tuple[Tensor, Tensor]:
        output, attention, _ = self._attend(bag)
        return output, attention

    def training_outputs(self, bag: Tensor, label: int | None) -> tuple[Tensor, Tensor | None]:
        output, attention, embedded = self._attend(bag)
        if label is None:
            return output[None], None
        count = min(self.tiles, len(bag))
        top, bottom = embedded[attention.topk(count)[1]], embedded[(-attention).topk(count)[1]]
        losses = [self._tile_loss(label, torch.cat((top, bottom)), count)]
        others = [k for k in range(len(self.tile_classifiers)) if k != label]
        if len(others) > 1:
            losses += [self._tile_loss(k, top, 0) for k in others]
            return output[None], (1 - _BAG) * torch.stack(losses).sum() / len(self.tile_classifiers)
        return output[None], (1 - _BAG) * losses[0]

    def _attend(self, bag: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        embedded = self.embed(bag)
        attention = softmax_over_tiles(self.attention(embedded)[0])
        return self.classifier(attention.to(embedded.dtype) @ embedded).float(), attention, embedded

    def _tile_loss(self, label: int, embedded: Tensor, positive: int) -> Tensor:
        """The smooth SVM loss of tiles, of which the first ``positive`` are of the class."""
        scores = self.tile_classifiers[label](embedded).float()
        truth = (torch.arange(len(scores), device=scores.device) < positive).long()
        return F.cross_entropy(scores + _MARGIN * (1 - F.one_hot(truth, 2)), truth)
