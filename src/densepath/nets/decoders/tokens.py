"""A transformer that predicts the masked patches: MAE's decoder."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from densepath.core.errors import UserError, counted
from densepath.nets.backbones.transformer_parts import initialize_linear, sincos_positions


class TokenDecoder(nn.Module):
    """Mask tokens for the masked patches, fixed sin-cos positions, transformer blocks, and a linear prediction.

    Args:
        in_features: channels of the encoder's tokens.
        dim: channels of the decoder.
        depth: number of blocks.
        heads: heads of the attention, which divide ``dim``.
        out_features: predicted values of a patch.

    Raises:
        UserError: the arguments are inconsistent.

    Source: MAE (CVPR 2022), section 3 and appendix A.1.
    """

    def __init__(self, in_features: int, dim: int, depth: int, heads: int, out_features: int) -> None:
        super().__init__()
        if depth < 1 or heads < 1 or dim < 4 or dim % heads or dim % 4:
            raise UserError(
                f"a decoder of {counted(depth, 'block')} with {counted(heads, 'head')} and {counted(dim, 'channel')} "
                "cannot be built; the channels must "
                "be a multiple of the heads and of 4, e.g. --method.decoder_dim 512 --method.decoder_heads 16"
            )
        norm: Any = partial(nn.LayerNorm, eps=1e-6)
        self.dim = dim
        self.embed = nn.Linear(in_features, dim)
        self.mask_token = nn.Parameter(torch.empty(1, 1, dim))
        from timm.models.vision_transformer import Block

        self.blocks = nn.Sequential(*(Block(dim, heads, qkv_bias=True, norm_layer=norm) for _ in range(depth)))
        self.norm = norm(dim)
        self.predict = nn.Linear(dim, out_features)
        nn.init.normal_(self.mask_token, std=0.02)
        self.apply(initialize_linear)

    def forward(self, tokens: Tensor, patches: Tensor, height: int, width: int) -> Tensor:
        """Predict all patches of a grid.

        Args:
            tokens: (B, prefix + n, in_features) the encoder's output for its prefix and n patches.
            patches: (B, n) int64, the indices of these patches.
            height, width: size of the grid in patches.

        Returns:
            (B, height * width, out_features).
        """
        prefix, seen = self.embed(tokens).split((tokens.shape[1] - patches.shape[1], patches.shape[1]), dim=1)
        grid = self.mask_token.expand(len(tokens), height * width, -1)
        grid = grid.scatter(1, patches.unsqueeze(-1).expand_as(seen), seen.to(grid.dtype))
        grid = grid + sincos_positions(height, width, self.dim, grid.device).to(grid.dtype)
        x = self.norm(self.blocks(torch.cat((prefix.to(grid.dtype), grid), dim=1)))
        return self.predict(x[:, prefix.shape[1] :])

    def no_weight_decay(self) -> set[str]:
        """The parameters without weight decay."""
        return {"mask_token"}
