"""What processes of one run tell each other. On a single process every function returns what it was given."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from densepath.core.random import permute


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
def mean(x: Tensor) -> Tensor:
    """The mean over the processes; no gradient flows."""
    if world_size() == 1:
        return x.detach()
    total = x.detach().clone()
    dist.all_reduce(total)
    return total / world_size()


class Shuffle:
    """MoCo's shuffled batch norm: each process encodes keys of images that other processes' queries come from.

    Batch statistics then differ between a query and its key, which otherwise betray the positive pair. A permutation of
    the global batch, the same on every process, deals the images out anew; :meth:`restore` undoes it. On one process
    there is nobody to exchange with, and both return what they were given.

    Args:
        local: images on each process.
        seed, step: the permutation's key.

    Source: He et al., MoCo, CVPR 2020, section 3.3.
    """

    def __init__(self, local: int, seed: int, step: int) -> None:
        total = local * world_size()
        self._order = permute(torch.arange(total), total, seed, step)
        self._mine = slice(rank() * local, (rank() + 1) * local)

    def deal(self, x: Tensor) -> Tensor:
        """This process's share of the shuffled global batch."""
        return x if world_size() == 1 else gather(x)[self._order[self._mine].to(x.device, non_blocking=True)]

    def restore(self, x: Tensor) -> Tensor:
        """What was computed from the dealt rows, back at the rows that this process owns."""
        return x if world_size() == 1 else gather(x)[self._order.argsort()[self._mine].to(x.device, non_blocking=True)]
