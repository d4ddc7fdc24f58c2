"""Additional blocks for a vision transformer, with BEiT's initialization."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from densepath.core.errors import UserError
from densepath.nets.backbones.transformer_parts import narrows


def new_blocks(model: Any, count: int) -> nn.Sequential:
    """Copies of the last blocks of a timm vision transformer, with new weights.

    Linear layers get weights from a truncated normal distribution with standard deviation 0.02 and zero biases, norms
    ones and zeros; layer scales are copied from the transformer.

    Args:
        model: the transformer.
        count: number of blocks, at most as many as it has.

    Raises:
        UserError: not so many blocks have the width of its features.
    """
    last = model.blocks[len(model.blocks) - count :]
    if narrows(last):
        raise UserError(f"the width of the network is halved within its last {count} blocks; use fewer new blocks")
    blocks: nn.Sequential = copy.deepcopy(last)
    return blocks.apply(initialize)


def initialize(module: nn.Module) -> None:
    """Initialize a layer as described in :func:`new_blocks`."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        module.reset_parameters()
