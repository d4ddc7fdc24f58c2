"""The aggregation of SelfPatch: a learned token attends to tokens, of a whole view or of a patch's neighborhood."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densepath.core.losses import full_precision


class Aggregate(nn.Module):
    """Two class-attention blocks, in which only a learned token changes.

    With the token c and tokens T, in each block c' = c + CA(LN(c, T)) and c'' = c' + MLP(LN(c')); there is no final
    norm.

    Args:
        dim: channels of the tokens.
        heads: attention heads.

    Source: Yun et al., SelfPatch, CVPR 2022, section 3.2; class attention: Touvron et al., CaiT, ICCV 2021.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.token = nn.Parameter(nn.init.trunc_normal_(torch.zeros(1, 1, dim), std=0.02))
        self.blocks = nn.ModuleList(_Block(dim, heads) for _ in range(2))
        for module in self.blocks.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """One vector (N, dim) of tokens (N, n, dim)."""
        found = self.token.expand(len(tokens), -1, -1)
        for block in self.blocks:
            found = block(found, tokens)
        return found.squeeze(1)

    def no_weight_decay(self) -> set[str]:
        return {"token"}


class _Block(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        from timm.layers import Mlp
        from timm.models.cait import ClassAttn

        norm: Any = partial(nn.LayerNorm, eps=1e-6)
        self.norm1, self.norm2 = norm(dim), norm(dim)
        self.attn = ClassAttn(dim, heads, qkv_bias=True)
        self.mlp = Mlp(dim, 4 * dim)

    def forward(self, found: Tensor, tokens: Tensor) -> Tensor:
        found = found + self.attn(self.norm1(torch.cat((found, tokens), dim=1)))
        return found + self.mlp(self.norm2(found))


@torch.no_grad()
def similar_neighbors(tokens: Tensor, grid: tuple[int, int], count: int) -> Tensor:
    """Of the 8 neighbors of each token those with the largest cosine; the borders of the grid wrap around.

    Args:
        tokens: (N, h * w, C).
        grid: h and w, at least 3.
        count: their number k.

    Returns:
        (N, h * w, k, C).

    Source: SelfPatch, section 3.1; the released code wraps around.
    """
    positions = torch.arange(tokens.shape[1], device=tokens.device).view(grid)
    steps = [(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1) if (down, right) != (0, 0)]
    near = torch.stack([positions.roll(step, (0, 1)) for step in steps], dim=-1).flatten(0, 1)  # (n, 8)
    with torch.autocast(tokens.device.type, enabled=False):
        unit = F.normalize(full_precision(tokens), dim=2)
        cosines = (unit @ unit.transpose(1, 2)).gather(2, near.expand(len(tokens), -1, -1))
    chosen = near.expand(len(tokens), -1, -1).gather(2, cosines.topk(count, dim=2).indices)  # (N, n, k)
    rows = torch.arange(len(tokens), device=tokens.device).view(-1, 1, 1)
    return tokens[rows, chosen]
