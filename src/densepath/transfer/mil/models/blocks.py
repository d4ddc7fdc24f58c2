"""Bags in blocks of tiles: a block is made float32 in the cache of a core, and the whole bag stays float16."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

_CPU = 2**18  # numbers in a block: 1 MiB as float32
_GPU = 2**24

Prepare = Callable[[Tensor], Tensor]


class Blocks:
    """The tiles of a bag in full precision, some at a time.

    Args:
        bag: (N, D) features as they are stored. They get no gradient.
        dtype: the precision to compute in.
        prepare: what is done to the features before a network sees them; None for nothing.
    """

    def __init__(self, bag: Tensor, dtype: torch.dtype, prepare: Prepare | None = None) -> None:
        self._bag, self._dtype, self._prepare = bag, dtype, prepare
        self._rows = max(1, (_CPU if bag.device.type == "cpu" else _GPU) // bag.shape[1])

    def __len__(self) -> int:
        return len(self._bag)

    def __iter__(self) -> Iterator[tuple[slice, Tensor]]:
        """Where a block lies in the bag, and its tiles (R, D), which are valid until the next block."""
        rows = min(self._rows, len(self))
        memory = torch.empty(rows, self._bag.shape[1], dtype=self._dtype, device=self._bag.device)
        for start in range(0, len(self), rows):
            stored = self._bag[start : start + rows]
            yield slice(start, start + len(stored)), self._ready(stored, memory[: len(stored)])

    def tiles(self, index: Tensor) -> Tensor:
        """(M, D) some tiles."""
        stored = self._bag[index]
        return self._ready(stored, torch.empty_like(stored, dtype=self._dtype))

    def products(self, vectors: Tensor) -> Tensor:
        """(K, N) products of the tiles with vectors (K, D), without gradients."""
        with torch.no_grad(), torch.autocast(self._bag.device.type, enabled=False):
            found = vectors.new_empty(len(vectors), len(self))
            for place, tiles in self:
                found[:, place] = vectors @ tiles.T
            return found

    def _ready(self, stored: Tensor, memory: Tensor) -> Tensor:
        return memory.copy_(stored if self._prepare is None else self._prepare(stored))


def attention_mean(keys: Tensor, bag: Blocks) -> tuple[Tensor, Tensor]:
    """The means of the tiles that are weighted by softmax(keys . tiles) over the tiles.

    The bag is read once here and once in the backward pass; nothing else of its size is in memory.

    Args:
        keys: (K, D).
        bag: N tiles.

    Returns:
        The means (K, D), and the attention (K, N), which has no gradient.
    """
    mean, attention = _AttentionMean.apply(keys, bag)
    return mean, attention


class _AttentionMean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, keys: Tensor, bag: Blocks) -> tuple[Tensor, Tensor]:
        """The softmax is that of the tiles so far, and earlier sums are scaled when a higher score comes."""
        with torch.autocast(keys.device.type, enabled=False):
            scores = keys.new_empty(len(keys), len(bag))
            highest, total = keys.new_full((len(keys), 1), -torch.inf), keys.new_zeros(len(keys), 1)
            sums = torch.zeros_like(keys)
            for place, tiles in bag:
                own = scores[:, place] = F.linear(keys, tiles)
                higher = torch.maximum(highest, own.amax(1, keepdim=True))
                weights, before = (own - higher).exp_(), (highest - higher).exp_()
                highest, total = higher, total * before + weights.sum(1, keepdim=True)
                sums.mul_(before).addmm_(weights, tiles)
            mean = sums / total
            attention = scores.sub_(highest).exp_().div_(total)
        ctx.save_for_backward(mean, attention)
        ctx.bag = bag
        ctx.mark_non_differentiable(attention)
        return mean, attention

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_mean: Tensor, _: Tensor) -> tuple[Tensor, None]:
        """sum_i a_i (g . h_i - g . mean) h_i, of attention a, tiles h and the gradient g of the mean."""
        mean, attention = ctx.saved_tensors
        gradient, of_mean = torch.zeros_like(mean), of_mean.contiguous()
        with torch.autocast(mean.device.type, enabled=False):
            constant = (of_mean * mean).sum(1, keepdim=True)
            for place, tiles in ctx.bag:
                weights = F.linear(of_mean, tiles).sub_(constant).mul_(attention[:, place])
                gradient.addmm_(weights, tiles)
        return gradient, None
