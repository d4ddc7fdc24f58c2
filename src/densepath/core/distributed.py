"""What processes of one run tell each other. On a single process every function returns what it was given."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from densepath.core.random import shuffled


def world_size() -> int:
    """How many processes share the run."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


@torch.no_grad()
def gather(x: Tensor) -> Tensor:
    """The rows of all processes, in the order of their ranks. The shapes must be equal; no gradient flows."""
    if world_size() == 1:
        return x.detach()
    flags = x.dtype == torch.bool  # some backends cannot send booleans
    x = x.detach().to(torch.uint8) if flags else x.detach()
    out = x.new_empty(world_size() * len(x), *x.shape[1:])
    dist.all_gather_into_tensor(out, x.contiguous())
    return out.bool() if flags else out


@torch.no_grad()
def broadcast(x: Tensor) -> Tensor:
    """What the first process holds; the shapes must be equal, no gradient flows."""
    if world_size() == 1:
        return x.detach()
    out = x.detach().clone(memory_format=torch.contiguous_format)
    dist.broadcast(out, 0)
    return out


@torch.no_grad()
def mean(x: Tensor) -> Tensor:
    """The mean over the processes; no gradient flows."""
    return x.detach() if world_size() == 1 else total(x) / world_size()


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        out = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(out)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        # What a process put in counts in the losses of all of them.
        (out,) = (gradient.clone(memory_format=torch.contiguous_format) for gradient in gradients)
        dist.all_reduce(out)
        return out


def total(x: Tensor) -> Tensor:
    """The sum over the processes, through which gradients flow: those of the sum of the processes' losses.

    The shapes must be equal, and all processes must go backward if one does.
    """
    return x if world_size() == 1 else _Total.apply(x)


def gather_with_gradient(x: Tensor) -> Tensor:
    """The rows (N, D) of all processes, in the order of their ranks; gradients flow as through :func:`total`."""
    if world_size() == 1:
        return x
    return total(F.pad(x, (0, 0, rank() * len(x), (world_size() - 1 - rank()) * len(x))))


@torch.no_grad()
def exchange(x: Tensor, sent: list[int], received: list[int]) -> Tensor:
    """Send the first ``sent[0]`` rows to the first process, the next to the second, and so on; no gradient flows.

    Args:
        x: (sum of ``sent``, ...).
        sent: how many rows go to each process.
        received: how many come from each.

    Returns:
        (sum of ``received``, ...), in the order of the ranks that they come from.
    """
    if world_size() == 1:
        return x.detach()
    channels_last = x.ndim > 3 and x.movedim(1, -1).is_contiguous()
    rows = x.detach().movedim(1, -1) if channels_last else x.detach()  # as they lie in memory
    out = rows.new_empty(sum(received), *rows.shape[1:])
    dist.all_to_all_single(out, rows.contiguous(), received, sent)
    return out.movedim(-1, 1) if channels_last else out


class Shuffle:
    """MoCo's shuffled batch norm: keys are encoded among others than their queries.

    Batch statistics then differ between a query and its key, which otherwise betray the positive pair. A permutation of
    the global batch, the same on every process, deals the images out again; :meth:`restore` undoes it. Each image goes
    to the one process that encodes it. Where all images share one group there is nobody to exchange with, and both
    methods return what they were given.

    Args:
        local: images on each process.
        seed, step: the permutation's key.
        group: images that have their statistics in common; 0 for those of a process.

    Source: He et al., MoCo, CVPR 2020, section 3.3.
    """

    def __init__(self, local: int, seed: int, step: int, group: int = 0) -> None:
        processes = world_size()
        self._idle = (group or local) >= local * processes
        if self._idle:
            return
        order = shuffled(local * processes, seed, step)  # which image each place of the shuffled batch gets
        mine = slice(rank() * local, (rank() + 1) * local)
        places, sources = order.argsort()[mine], order[mine] // local
        # Rows travel in the order of their places; those that arrive are sorted by the process that they come from.
        self._leaving, self._arriving = places.argsort(), sources.argsort(stable=True)
        self._sent = torch.bincount(places // local, minlength=processes).tolist()
        self._received = torch.bincount(sources, minlength=processes).tolist()

    def deal(self, x: Tensor) -> Tensor:
        """This process's share of the shuffled global batch."""
        if self._idle:
            return x
        return _pick(exchange(_pick(x, self._leaving), self._sent, self._received), self._arriving.argsort())

    def restore(self, x: Tensor) -> Tensor:
        """What was computed from the dealt rows, back at the rows that this process owns."""
        if self._idle:
            return x
        return _pick(exchange(_pick(x, self._arriving), self._received, self._sent), self._leaving.argsort())


def _pick(x: Tensor, rows: Tensor) -> Tensor:
    """Rows of a tensor on any device, by positions on the CPU."""
    return x[rows.to(x.device, non_blocking=True)]
