"""Decoders: from feature maps to pixels."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from densepath.core.errors import UserError, counted
from densepath.nets.backbones.transformer_parts import initialize_linear, sincos_positions


class MultiScaleDecoder(nn.Module):
    """Pixels of patches, from maps of several scales.

    A convolution for each map, with equal kernel and stride, gives one token per patch; their sum (Equation 5) passes
    one transformer block with fixed positions, a norm and a linear layer (Equation 6).

    Args:
        channels: channels of each map.
        positions: positions of each map along a side of a patch.
        patch: side of a patch in pixels.
        width: channels of the tokens; a multiple of 4 and of ``heads``.
        heads: heads of the block's attention.
        colors: channels of a pixel.

    Source: Yang et al., Conv-MIM, WACV 2024, section 3; block, positions and initialization of MAE (CVPR 2022). The
    convolutions' sizes are not in the paper.
    """

    def __init__(
        self, channels: Sequence[int], positions: Sequence[int], patch: int, width: int, heads: int, colors: int = 3
    ) -> None:
        super().__init__()
        if heads < 1 or width < 1 or width % 4 or width % heads:
            raise UserError(
                f"a decoder's width must be a multiple of 4 and of its {counted(heads, 'head')}; {width} is not"
            )
        self.width = width
        scales = zip(channels, positions, strict=True)
        self.unify = nn.ModuleList(nn.Conv2d(count, width, kernel, stride=kernel) for count, kernel in scales)
        norm: Any = partial(nn.LayerNorm, eps=1e-6)
        from timm.models.vision_transformer import Block

        self.block = Block(width, heads, mlp_ratio=4, qkv_bias=True, norm_layer=norm)
        self.norm = norm(width)
        self.predict = nn.Linear(width, colors * patch**2)
        self.apply(initialize_linear)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """The patches (B, h * h, patch * patch * colors), in the order of ``to_patches``.

        Args:
            maps: each (B, channels, h * positions, h * positions).
        """
        unified = torch.stack([unify(x) for unify, x in zip(self.unify, maps, strict=True)]).sum(0)
        height, width = unified.shape[2:]
        positions = sincos_positions(height, width, self.width, unified.device)
        tokens = unified.flatten(2).transpose(1, 2) + positions
        predicted: Tensor = self.predict(self.norm(self.block(tokens)))
        return predicted
