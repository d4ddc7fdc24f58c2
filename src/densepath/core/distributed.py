"""Communication between the processes of one run. With a single process every function returns its input."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from densepath.core.random import shuffled

_alone = ContextVar("_alone", default=False)


@contextmanager
def alone() -> Iterator[None]:
    """Within it this process is the only one, as for work that every process does in whole."""
    before = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(before)


def world_size() -> int:
    """The number of processes of the run."""
    if _alone.get():
        return 1
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def local(x: Tensor) -> Tensor:
    """This process's part of a tensor that is sharded over the processes; any other tensor as it is."""
    return x.to_local() if hasattr(x, "to_local") else x


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
    """The first process's tensor; the shapes must be equal, no gradient flows."""
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
        # The input of each process enters the losses of all processes.
        (out,) = (gradient.clone(memory_format=torch.contiguous_format) for gradient in gradients)
        dist.all_reduce(out)
        return out


def total(x: Tensor) -> Tensor:
    """The sum over the processes, through which gradients flow: those of the sum of the processes' losses.

    The shapes must be equal, and all processes must call backward if one does.
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
        (sum of ``received``, ...), ordered by the rank of the sender.
    """
    if world_size() == 1:
        return x.detach()
    channels_last = x.ndim > 3 and x.movedim(1, -1).is_contiguous()
    rows = x.detach().movedim(1, -1) if channels_last else x.detach()  # as they lie in memory
    out = rows.new_empty(sum(received), *rows.shape[1:])
    dist.all_to_all_single(out, rows.contiguous(), received, sent)
    return out.movedim(-1, 1) if channels_last else out


class Shuffle:
    """MoCo's shuffled batch norm: keys are encoded together with other images than their queries.

    A query and its key then have different batch statistics; equal ones would leak which pair is positive. A
    permutation of the global batch, the same on every process, redistributes the images; :meth:`restore` undoes it.
    Each image is sent to the one process that encodes it. If all images share one group, there is nothing to exchange,
    and both methods return their input.

    Args:
        local: images on each process.
        seed, step: the permutation's key.
        group: number of images that share batch statistics; 0 for all images of a process.

    Source: He et al., MoCo, CVPR 2020, section 3.3.
    """

    def __init__(self, local: int, seed: int, step: int, group: int = 0) -> None:
        processes = world_size()
        self._idle = (group or local) >= local * processes
        if self._idle:
            return
        order = shuffled(local * processes, seed, step)  # the image at each position of the shuffled batch
        mine = slice(rank() * local, (rank() + 1) * local)
        targets, sources = order.argsort()[mine], order[mine] // local
        # Rows are sent in the order of their new positions; received rows are sorted by the rank of the sender.
        self._leaving, self._arriving = targets.argsort(), sources.argsort(stable=True)
        self._sent = torch.bincount(targets // local, minlength=processes).tolist()
        self._received = torch.bincount(sources, minlength=processes).tolist()

    def deal(self, x: Tensor) -> Tensor:
        """This process's share of the shuffled global batch."""
        if self._idle:
            return x
        return _pick(exchange(_pick(x, self._leaving), self._sent, self._received), self._arriving.argsort())

    def restore(self, x: Tensor) -> Tensor:
        """Results for the shuffled rows, back in the order of this process's own rows."""
        if self._idle:
            return x
        return _pick(exchange(_pick(x, self._arriving), self._received, self._sent), self._leaving.argsort())


def _pick(x: Tensor, rows: Tensor) -> Tensor:
    """Rows of a tensor on any device, by positions on the CPU."""
    return x[rows.to(x.device, non_blocking=True)]
