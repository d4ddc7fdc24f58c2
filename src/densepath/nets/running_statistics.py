"""The running statistics of batch norms, of all processes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from densepath.core.distributed import gather, world_size


def running_statistics(network: nn.Module) -> dict[str, Tensor]:
    """The running means and variances of all batch norms, by their names in the state dict."""
    return {name: buffer for name, buffer in network.named_buffers() if name.endswith(("running_mean", "running_var"))}


@torch.no_grad()
def gather_statistics(network: nn.Module) -> Tensor:
    """The running statistics of every process, (processes, numbers). All processes call this."""
    buffers = [buffer.flatten() for buffer in running_statistics(network).values()]
    return gather(torch.cat(buffers).unsqueeze(0)) if buffers else torch.zeros(world_size(), 0)


def name_statistics(network: nn.Module, numbers: Tensor) -> dict[str, Tensor]:
    """The statistics in (numbers,), one row of :func:`gather_statistics`, by their names in the state dict."""
    buffers = running_statistics(network)
    parts = numbers.split([buffer.numel() for buffer in buffers.values()])
    return {name: part.view_as(buffer) for (name, buffer), part in zip(buffers.items(), parts, strict=True)}


@torch.no_grad()
def set_statistics(network: nn.Module, numbers: Tensor) -> None:
    """Give a network the running statistics of one row of :func:`gather_statistics`."""
    for name, value in name_statistics(network, numbers).items():
        network.get_buffer(name).copy_(value)
