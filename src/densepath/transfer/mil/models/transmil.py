"""TransMIL: a transformer over the tiles of a bag, with positions from convolutions over a square of tokens."""

from __future__ import annotations

from math import ceil

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from densepath.transfer.mil.models.base import BagModel, Solver
from densepath.transfer.mil.models.nystrom import NystromAttention

_DIM = 512
# Tokens, above which a layer is computed again in its backward pass: less memory (1,122 MiB for a training step with
# 10,000 tiles, 1,410 without).
_LONG = 8192


class _Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(_DIM)
        self.attention = NystromAttention(_DIM, landmarks=_DIM // 2)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        attended, of_first = self.attention(self.norm(tokens))
        return tokens + attended, of_first


class _Positions(nn.Module):
    """Depthwise convolutions over the tiles, laid out as a square in their order (PPEG)."""

    def __init__(self) -> None:
        super().__init__()
        sizes = (7, 5, 3)
        self.convolutions = nn.ModuleList(nn.Conv2d(_DIM, _DIM, k, padding=k // 2, groups=_DIM) for k in sizes)

    def forward(self, tokens: Tensor, side: int) -> Tensor:
        square = tokens[1:].T.reshape(1, _DIM, side, side)
        summed = square + sum(convolution(square) for convolution in self.convolutions)
        return torch.cat((tokens[:1], summed[0].flatten(1).T))


class TransMIL(BagModel):
    """A correlated transformer: two layers of Nyström attention, and positions in between.

    The order of the tiles matters: they are laid out as a square row by row, so a permuted bag has another answer. The
    attention is that of the class token in the last layer; as an approximation it may have small negative values.
    The first tiles are repeated to fill the square. The released code wraps RAdam in Lookahead; here it is plain RAdam.

    Args:
        dim: D.
        outputs: K.

    Source: Shao et al., NeurIPS 2021.
    """

    solver = Solver(2e-4, 1e-5, optimizer="radam")

    def __init__(self, dim: int, outputs: int) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(dim, _DIM), nn.ReLU())
        self.class_token = nn.Parameter(torch.randn(1, _DIM))
        self.first, self.positions, self.second = _Layer(), _Positions(), _Layer()
        self.norm = nn.LayerNorm(_DIM)
        self.classifier = nn.Linear(_DIM, outputs)

    def forward(self, bag: Tensor) -> tuple[Tensor, Tensor]:
        count = len(bag)
        embedded = self.embed(bag)
        side = ceil(count**0.5)
        square = torch.cat((embedded, embedded[: side * side - count]))
        tokens, _ = _run(self.first, torch.cat((self.class_token.to(square.dtype), square)))
        tokens, attention = _run(self.second, self.positions(tokens, side))
        return self.classifier(self.norm(tokens[0])).float(), attention[1 : count + 1].float()


def _run(layer: _Layer, tokens: Tensor) -> tuple[Tensor, Tensor]:
    if len(tokens) <= _LONG or not torch.is_grad_enabled():
        found: tuple[Tensor, Tensor] = layer(tokens)
        return found
    again: tuple[Tensor, Tensor] = checkpoint(layer, tokens, use_reentrant=False)
    return again
