"""DSMIL: the critical tile of each class attends to all tiles."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densepath.transfer.mil.models.base import BagModel, Solver, initialize, softmax_over_tiles
from densepath.transfer.mil.models.blocks import Blocks

QUERY = 128


class DSMIL(BagModel):
    """Dual-stream multiple-instance learning.

    The first stream scores each tile; the second compares the query of each tile with that of the critical tile of a
    class, the one with the highest score, and classifies the mean of the tiles that is weighted by this attention. The
    loss is the mean of both streams', the first with the highest score of each class. Each class has a sigmoid.

    Args:
        dim: D.
        outputs: K.

    Source: Li, Li, Eliceiri, CVPR 2021, and its released code in the version of five folds and 50
    epochs (queries D-128-ReLU-128-Tanh, values are the features, orthogonal weights, betas 0.5 and 0.9); learning rate
    and weight decay of DiRL. The paper's linear form is
    :class:`~densepath.transfer.mil.models.dsmil_linear.LinearDSMIL`.
    """

    solver = Solver(2e-4, 5e-2, 50, (0.5, 0.9), "cosine", 5e-6)
    streams = (0.5, 0.5)
    exclusive = False

    def __init__(self, dim: int, outputs: int) -> None:
        super().__init__()
        self.tile_classifier = nn.Linear(dim, outputs)
        self.query: nn.Module = nn.Sequential(nn.Linear(dim, QUERY), nn.ReLU(), nn.Linear(QUERY, QUERY))
        self.classifier = nn.Conv1d(outputs, outputs, dim)
        initialize(self, "orthogonal")

    def forward(self, bag: Tensor) -> tuple[Tensor, Tensor]:
        output, attention, _ = self._streams(bag)
        return output, attention

    def training_outputs(self, bag: Tensor, label: int | None) -> tuple[Tensor, Tensor | None]:
        output, _, critical = self._streams(bag)
        return torch.stack((output, critical)), None

    def _streams(self, bag: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The bag's outputs (K,), its attention (K, N), and the scores (K,) of the critical tiles."""
        critical, scores = self._critical(Blocks(bag, self.tile_classifier.weight.dtype))
        queries = self.query(bag).float().tanh()  # (N, 128); on CPUs tanh is slow in bfloat16
        attention = softmax_over_tiles(queries[critical] @ queries.T / QUERY**0.5)  # (K, N)
        vectors = attention.to(bag.dtype) @ bag  # (K, D)
        # A convolution over whole vectors is a matrix product.
        output = F.linear(vectors.flatten(), self.classifier.weight.flatten(1), self.classifier.bias)
        return output.float(), attention, scores.float()

    def _critical(self, bag: Blocks) -> tuple[Tensor, Tensor]:
        """The critical tiles (K,) and their scores (K,).

        In full precision: in bfloat16 several tiles of a large bag would share the highest score. The gradient of the
        scores is that of the critical tiles.
        """
        critical = bag.products(self.tile_classifier.weight).argmax(1)  # the bias is the same for all tiles
        tiles = bag.tiles(critical)
        with torch.autocast(tiles.device.type, enabled=False):
            return critical, self.tile_classifier(tiles).diagonal()
