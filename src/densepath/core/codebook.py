"""A codebook: K unit vectors that follow the vectors assigned to them; a vector's code is the index of the nearest."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densepath.core.clustering import kmeans, nearest
from densepath.core.distributed import broadcast, gather, rank, total
from densepath.core.errors import UserError
from densepath.core.losses import full_precision

ITERATIONS = 10  # of k-means, as released
CREDIT = "credit"  # how far codes are from their restart: needed only for training


class Codebook(nn.Module):
    """K unit vectors of length D, moved by exponential moving averages and not by gradients.

    They are initialized with the centroids of k-means (cosine distance) of the first vectors. Then, after each
    optimizer step, a code becomes norm(m * code + (1 - m) * norm(mean of its vectors)), over the vectors of all
    processes and of all batches that the step accumulated. A code without vectors in the step does not change.

    ``usage`` is the moving average, with the same m, of the number of vectors of a code in a step.

    Args:
        size: K.
        dim: D.
        momentum: m.
        restart_below: a code restarts at a random vector of the batch once its number of vectors is below this share of
            the mean. The number is a moving average like the usage, but starts at the mean, again after each restart.
            With 0, as released, no code restarts: then few codes stay in use if all vectors move away from the codes
            together, as they do while an encoder first learns what its targets have in common.

    Source: VQ-KD of BEiT-v2 (arXiv 2208.06366) and its released code. With several processes, the released code starts
    with different codebooks, each from its own process's vectors. Here all start from the vectors of all processes.
    """

    codes: Tensor
    usage: Tensor
    credit: Tensor

    def __init__(self, size: int, dim: int, momentum: float = 0.99, restart_below: float = 0.0) -> None:
        super().__init__()
        if size < 2 or dim < 1:
            raise UserError(f"a codebook needs at least 2 codes of length 1 or more, not {size} of length {dim}")
        if not 0 <= momentum <= 1:
            raise UserError(f"the momentum of the codes must be between 0 and 1, not {momentum}")
        if not 0 <= restart_below < 1:
            raise UserError(f"restart_below is a share of the mean usage, from 0 to less than 1, not {restart_below}")
        self.momentum = momentum
        self.restart_below = restart_below
        self.begun = False
        self._pending: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []  # of the current step
        self._new = False  # whether the codes have just been initialized, in the current step
        self.register_buffer("codes", torch.zeros(size, dim))
        self.register_buffer("usage", torch.zeros(size))
        if restart_below:
            self.register_buffer(CREDIT, torch.zeros(size))

    def forward(self, vectors: Tensor) -> Tensor:
        """The codes (...) int64 of unit vectors (..., D): the index of the nearest of the K."""
        with torch.autocast(vectors.device.type, enabled=False):
            flat = vectors.detach().flatten(0, -2).to(self.codes.dtype)
            return nearest(flat, self.codes).view(vectors.shape[:-1])

    def look_up(self, codes: Tensor) -> Tensor:
        """The unit vectors (..., D) of codes (...)."""
        return F.embedding(codes, self.codes)

    @torch.no_grad()
    def begin(self, vectors: Tensor, draws: Tensor) -> None:
        """Initialize the codes, once: with k-means over the vectors of all processes, run by the first process.

        Args:
            vectors: (N, D) this process's unit vectors; at least K over all processes.
            draws: one random number for each vector of all processes: centroids start at the vectors with the smallest.
        """
        vectors = gather(full_precision(vectors))
        if rank() == 0:
            order = draws.to(vectors.device, non_blocking=True).argsort(stable=True)
            centroids, _ = kmeans(vectors, order, len(self.codes), ITERATIONS, unit=True)
            self.codes.copy_(centroids)
        self.codes.copy_(broadcast(self.codes))
        self._new = True
        self.begun = True

    @torch.no_grad()
    def follow(self, vectors: Tensor, codes: Tensor, draws: Tensor) -> Tensor:
        """Collect the vectors of a batch; the codes move towards them after the step.

        Args:
            vectors: (N, D) this process's unit vectors.
            codes: (N,) int64, their codes.
            draws: (K,) numbers in [0, 1), the same on all processes: at which vectors codes restart; empty if codes
                never restart. Only those of a step's first batch are used.

        Returns:
            The number of codes that the batch uses, over all processes: a scalar.
        """
        vectors = full_precision(vectors).to(self.codes.dtype)
        sums = torch.zeros_like(self.codes).index_add_(0, codes, vectors)
        counts = torch.zeros_like(self.usage).index_add_(0, codes, torch.ones_like(vectors[:, 0]))
        sums, counts = total(torch.cat((sums, counts.unsqueeze(1)), dim=1)).tensor_split([sums.shape[1]], dim=1)
        kept = gather(vectors) if self.restart_below else vectors[:0]
        self._pending.append((sums, counts, kept, draws.to(vectors.device, non_blocking=True)))
        return (counts > 0).sum().to(self.codes.dtype)

    @torch.no_grad()
    def after_step(self) -> None:
        """Move the codes towards the vectors of the step."""
        if not self._pending:
            return
        every_sum, every_count, vectors, draws = zip(*self._pending, strict=True)
        self._pending.clear()
        sums, counts = _added(every_sum), _added(every_count)
        means = torch.where(counts > 0, F.normalize(sums, dim=1), self.codes)
        self.codes.copy_(F.normalize(self.codes.lerp(means, 1 - self.momentum), dim=1))
        counts = counts.squeeze(1)
        self.usage.lerp_(counts, 1 - self.momentum)
        if self.restart_below:
            self._restart(torch.cat(vectors), counts, draws[0])

    def _restart(self, vectors: Tensor, counts: Tensor, draws: Tensor) -> None:
        mean = len(vectors) / len(self.codes)
        if self._new:  # only now is it known how many vectors a step brings: several batches may make it
            self.credit.fill_(mean)
            self._new = False
        self.credit.lerp_(counts, 1 - self.momentum)
        idle = self.credit < self.restart_below * mean
        chosen = vectors[(draws * len(vectors)).long()]
        self.codes.copy_(torch.where(idle.unsqueeze(1), chosen, self.codes))
        self.credit.masked_fill_(idle, mean)

    def perplexity(self) -> float:
        """The effective number of codes in use: e to the entropy of the usage; 0 if unknown."""
        shares = self.usage / self.usage.sum()
        return float(torch.special.entr(shares).sum().exp()) if bool(self.usage.any()) else 0.0

    def get_extra_state(self) -> Tensor:
        """Whether the codes are initialized. Not a buffer: reading one would synchronize with the device."""
        return torch.tensor(self.begun)

    def set_extra_state(self, state: Any) -> None:
        self.begun = bool(state)


def _added(parts: Sequence[Tensor]) -> Tensor:
    """The sum of tensors of one shape."""
    return functools.reduce(torch.add, parts)
