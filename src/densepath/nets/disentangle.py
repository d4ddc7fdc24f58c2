"""The disentangle block of DiRL: a transformer block applied within regions, and between them."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from densepath.nets.backbones.transformer_parts import choose_attention


class Disentangle(nn.Module):
    """A pre-norm transformer block whose attention is masked, in two passes.

    M_self opens tokens of the same region, M_cross those of other regions; a token always sees itself (Equation 4):

    T' = T + MSA_mask(LN(T)),   T_mask = T' + MLP(LN(T'))   (Equations 5 to 7), followed by a final LN.

    The paper does not say whether both passes share their weights; here they do unless ``shared`` is off.

    Args:
        dim: channels of the tokens.
        heads: attention heads.
        shared: whether both passes have the same weights.

    Source: DiRL, section 3.4.
    """

    def __init__(self, dim: int, heads: int, shared: bool = True) -> None:
        super().__init__()
        from timm.models.vision_transformer import Block

        norm: Any = partial(nn.LayerNorm, eps=1e-6)
        count = 1 if shared else 2
        self.blocks = nn.ModuleList(Block(dim, heads, qkv_bias=True, norm_layer=norm) for _ in range(count))
        self.norms = nn.ModuleList(norm(dim) for _ in range(count))
        for module in self.blocks.modules():
            if isinstance(module, nn.Linear):  # as in the encoder
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, tokens: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """T_self and T_cross, each (N, n, dim), of tokens (N, n, dim) with the regions (N, n) int64."""
        choose_attention(self.blocks, tokens.device)
        masks = attention_masks(labels, tokens.dtype)
        if len(self.blocks) == 1:
            both = self.norms[0](self.blocks[0](tokens.repeat(2, 1, 1), attn_mask=torch.cat(masks).unsqueeze(1)))
            within, between = both.chunk(2)
            return within, between
        passes = zip(self.blocks, self.norms, masks, strict=True)
        within, between = (norm(block(tokens, attn_mask=mask.unsqueeze(1))) for block, norm, mask in passes)
        return within, between


def attention_masks(labels: Tensor, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """M_self and M_cross (N, n, n), 0 where open and -inf elsewhere, of the regions (N, n) of tokens.

    They are added to the scores: older versions of timm add booleans as 0 and 1.
    """
    same = labels.unsqueeze(2) == labels.unsqueeze(1)
    itself = torch.eye(labels.shape[1], dtype=torch.bool, device=labels.device)
    opened = torch.zeros(same.shape, dtype=dtype, device=labels.device)
    return opened.masked_fill(~same, -torch.inf), opened.masked_fill(same & ~itself, -torch.inf)
