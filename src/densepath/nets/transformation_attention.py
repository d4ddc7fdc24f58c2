"""Attention on the channels of a map, conditioned on the transformation of the target: PCRL's TransAtt."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from densepath.core.errors import UserError
from densepath.core.regions import global_pool

Attention = Literal["outer", "factored", "gate"]
_HIDDEN = 256  # as released; the paper does not say


class TransformationAttention(nn.Module):
    """Scales the channels of a map by what a transformation needs.

    "outer" is the paper's: with f_p the indicator vector after two linear layers and f_l the pooled map,

    f_w = sigmoid(ReLU(W flat(f_p x f_l^T))),   F' = conv(F * f_w)   (Equations 1 to 4),

    where W has C**3 weights, 134 million for 512 channels. "factored" has a W of rank R, a sum of R products
    a_r (p_r f_p)(l_r f_l), and 3 C R weights. "gate" is that of the released code: f_w = sigmoid(f_p), without the map
    and without the convolution.

    Args:
        channels: channels C of the map.
        components: components of the indicator vector: 6 for images, 7 for volumes.
        kind: see above.
        rank: R, for "factored".
        ndim: dimensions of the map.

    Source: Zhou et al., PCRL, ICCV 2021, section 3.1.
    """

    def __init__(
        self, channels: int, components: int, kind: Attention = "outer", rank: int = 64, ndim: int = 2
    ) -> None:
        super().__init__()
        if kind not in ("outer", "factored", "gate"):
            raise UserError(f"unknown attention {kind!r}; there are: outer, factored, gate")
        if rank < 1:
            raise UserError(f"the rank of the attention must be at least 1, not {rank}")
        self.kind = kind
        self.embed = nn.Sequential(nn.Linear(components, _HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, channels))
        if kind == "gate":
            return
        if kind == "outer":
            self.combine = nn.Linear(channels**2, channels, bias=False)
        else:
            self.left, self.right = (nn.Linear(channels, rank, bias=False) for _ in range(2))
            self.combine = nn.Linear(rank, channels, bias=False)
        self.conv = (nn.Conv2d, nn.Conv3d)[ndim - 2](channels, channels, 3, padding=1)

    def scales(self, pooled: Tensor, indicator: Tensor) -> Tensor:
        """f_w (B, C) of pooled maps (B, C) and indicator vectors (B, components)."""
        embedded = self.embed(indicator)
        if self.kind == "gate":
            return torch.sigmoid(embedded)
        if self.kind == "outer":
            product = (embedded.unsqueeze(2) * pooled.unsqueeze(1)).flatten(1)
        else:
            product = self.left(embedded) * self.right(pooled)
        return torch.sigmoid(self.combine(product).relu())

    def forward(self, features: Tensor, indicator: Tensor) -> Tensor:
        """F' (B, C, *spatial) of a map (B, C, *spatial)."""
        scale = self.scales(global_pool(features), indicator.to(features.dtype))
        scaled = features * scale.view(*scale.shape, *[1] * (features.ndim - 2))
        return scaled if self.kind == "gate" else self.conv(scaled)
