"""Refuses weights that no network can compute with, by the names of their tensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor, nn

from densepath.core.errors import UserError

_NONE: Mapping[str, Tensor] = MappingProxyType({})
_VARIANCE = "running_var"  # the end of its name in a batch norm


def require_numbers(tensors: Mapping[str, Tensor], source: str | Path, own: Mapping[str, Tensor] = _NONE) -> None:
    """Check that tensors are dense, finite and real, and that variances are not negative.

    Args:
        tensors: the tensors that a network is about to load.
        source: where they come from, for the message.
        own: those of the network. Where they have fractions, whole numbers are refused: quantized weights have a
            meaning only with their scales.

    Raises:
        UserError: one is not; the message names it.
    """
    for name, tensor in tensors.items():
        if fault := _fault(name, tensor, name in own and own[name].is_floating_point()):
            raise UserError(f"{source} cannot be used: its tensor {name} {fault}; use other weights")


def require_numbers_in(network: nn.Module, source: str | Path) -> None:
    """As :func:`require_numbers`, for the parameters and batch-norm statistics of a network that has loaded them."""
    require_numbers(only_weights(network, network.state_dict()), source)


def only_weights(network: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that are parameters or batch-norm statistics of a network: other buffers may be infinite."""
    trained = {name for name, _ in network.named_parameters()}
    return {name: value for name, value in tensors.items() if name in trained or "running_" in name}


def _fault(name: str, tensor: Tensor, fractions: bool) -> str:
    if tensor.is_meta or tensor.layout != torch.strided or tensor.is_nested or tensor.is_quantized:
        return "does not hold plain numbers (it is a meta, sparse, nested or quantized tensor)"
    if tensor.is_complex():
        return "holds complex numbers"
    if not tensor.is_floating_point():
        return "holds whole numbers: quantized weights mean nothing without their scales" if fractions else ""
    numbers = tensor if tensor.element_size() > 1 else tensor.float()
    if not bool(numbers.isfinite().all()):
        return "holds NaN or infinite numbers"
    return "holds negative variances" if name.endswith(_VARIANCE) and bool((numbers < 0).any()) else ""
