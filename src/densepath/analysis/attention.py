"""The attention of a vision transformer's last block: how much each token gets, and how unequally."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from densepath.analysis.source import check_finite
from densepath.core.errors import UserError
from densepath.nets.backbones import Backbone

BINS = ("below 0.5", "0.5 to 2", "above 2")  # of the share that a token gets if all get the same
_LOWEST, _HIGHEST, _STEPS = -6.0, 6.0, 96  # histogram: powers of 2
_AT_ONCE = 2**25  # numbers of attention in a pass: bounds its memory


class LastAttention:
    """The attention among the patch tokens in the last block of a vision transformer.

    Class and register tokens are left out, and the rows sum to 1 again. Rotary positions, norms of queries and keys,
    and other parts of timm's attention count, because it is taken where timm computes it.

    Args:
        backbone: the backbone, in evaluation mode.

    Attributes:
        heads: H.

    Raises:
        UserError: it is not a vision transformer.
    """

    def __init__(self, backbone: Backbone) -> None:
        model: Any = getattr(backbone.net, "model", None) if backbone.patch_size > 1 else None
        layers: list[Any] = [module for module in model.modules() if hasattr(module, "attn_drop")] if model else []
        layers = [layer for layer in layers if hasattr(layer, "fused_attn")]
        if not layers:
            raise UserError(
                f"{backbone.name} has no attention among patches to show; give weights of a vision transformer"
            )
        self._backbone, self._layer, self._prefix = backbone, layers[-1], int(model.num_prefix_tokens)
        self.heads = int(self._layer.num_heads)

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """The attention of views (B, C, H, W).

        Returns:
            Those of :func:`among_patches`.

        Raises:
            UserError: the network gives numbers that are not finite.
        """
        taken: list[Tensor] = []
        fused, self._layer.fused_attn = self._layer.fused_attn, False  # the fused operation keeps no attention
        hook = self._layer.attn_drop.register_forward_pre_hook(lambda _, inputs: taken.append(inputs[0].detach()))
        try:
            self._backbone(pixels)
        finally:
            hook.remove()
            self._layer.fused_attn = fused
        return among_patches(taken[0], self._prefix)

    def batch_size(self, view_size: int) -> int:
        """Views in a pass."""
        tokens = self._prefix + (view_size // self._backbone.patch_size) ** 2
        return max(1, min(32, _AT_ONCE // (self.heads * tokens**2)))


def among_patches(attention: Tensor, prefix: int) -> tuple[Tensor, Tensor]:
    """The attention (B, heads, n + prefix, n + prefix) without its first tokens.

    Returns:
        (B, heads, n, n) in float32: rows are queries and sum to 1, and are even where a query gives patches nothing;
        and (B, heads) the share that the first tokens had, on average over the queries.

    Raises:
        UserError: it is not finite.
    """
    own = attention.float()[:, :, prefix:, prefix:]
    kept = own.sum(-1, keepdim=True)
    check_finite(kept, "attention")
    return torch.where(kept > 0, own / kept, 1 / own.shape[-1]), 1 - kept[..., 0].mean(-1)


def aggregated(attention: Tensor) -> Tensor:
    """What each token gets from all queries: the sums of the columns of (..., n, n), (..., n) with a mean of 1.

    Source: DiRL, section 4.2.
    """
    return attention.sum(-2)


@dataclass(eq=False)
class AttentionShares:
    """Counts of tokens by their aggregated attention, of each head, and of the mean of the heads in the last row.

    Args:
        heads: H.

    Attributes:
        bins: (H + 1, 3) tokens below 0.5, from 0.5 to 2, and above 2.
        histogram: (H + 1, 96) tokens by the logarithm of their attention, from 2**-6 to 2**6; others are at the ends.
        prefix: (H + 1,) the sum over the views of the share that class and register tokens had.
        views: their number.
    """

    heads: int
    bins: npt.NDArray[np.int64] = field(init=False)
    histogram: npt.NDArray[np.int64] = field(init=False)
    prefix: npt.NDArray[np.float64] = field(init=False)
    views: int = 0

    def __post_init__(self) -> None:
        self.bins = np.zeros((self.heads + 1, len(BINS)), np.int64)
        self.histogram = np.zeros((self.heads + 1, _STEPS), np.int64)
        self.prefix = np.zeros(self.heads + 1)

    def add(self, attention: Tensor, prefix: Tensor) -> None:
        """Count the tokens of some views.

        Args:
            attention: (B, H, n, n) as :class:`LastAttention` gives it.
            prefix: (B, H).
        """
        found = aggregated(attention).double()
        rows = torch.cat((found, found.mean(1, keepdim=True)), 1).transpose(0, 1).flatten(1).cpu().numpy()  # (H + 1, N)
        self.bins += np.stack([rows < 0.5, (rows >= 0.5) & (rows <= 2), rows > 2], -1).sum(1)
        with np.errstate(divide="ignore"):
            place = (np.log2(rows) - _LOWEST) * (_STEPS / (_HIGHEST - _LOWEST))
        for row, own in enumerate(place.clip(0, _STEPS - 1).astype(np.int64)):
            self.histogram[row] += np.bincount(own, minlength=_STEPS)
        shares = torch.cat((prefix, prefix.mean(1, keepdim=True)), 1).double().sum(0)
        self.prefix += shares.cpu().numpy()
        self.views += len(attention)

    def shares(self) -> npt.NDArray[np.float64]:
        """(H + 1, 3) the shares of tokens in the bins."""
        return self.bins / self.bins.sum(1, keepdims=True)

    def density(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Of the mean of the heads: the edges (97,) of the histogram, and the shares (96,) of tokens in it."""
        edges = 2.0 ** np.linspace(_LOWEST, _HIGHEST, _STEPS + 1)
        return edges, self.histogram[-1] / self.histogram[-1].sum()
