"""Further layers for a vision transformer, with the weights that BEiT starts from."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn


def new_blocks(model: Any, count: int) -> nn.Sequential:
    """Blocks like the last of a timm vision transformer, with new weights.

    Linear layers get weights of a truncated normal distribution with a deviation of 0.02 and biases of zero, norms ones
    and zeros; layer scales are those of the transformer's.

    Args:
        model: the transformer.
        count: how many, at most as many as it has.
    """
    blocks: nn.Sequential = copy.deepcopy(model.blocks[len(model.blocks) - count :])
    return blocks.apply(initialize)


def initialize(module: nn.Module) -> None:
    """Give a layer new weights, as above."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        module.reset_parameters()
