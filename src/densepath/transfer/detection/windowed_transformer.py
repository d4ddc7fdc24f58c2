"""A vision transformer for large images: most of its blocks attend within windows, with relative positions."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath, resample_abs_pos_embed
from timm.models.vision_transformer import Attention, Block
from timm.models.vision_transformer_sam import window_partition, window_unpartition
from torch import Tensor, nn

from densepath.core.errors import UserError
from densepath.nets.backbones import Backbone

WINDOW = 14  # patches: the map of an image of 224 px
_GLOBAL = 4  # blocks that attend to the whole map
_LONGEST = 84  # patches: the longest map that a detector is shown, of 1333 px and their padding
_DROP_PATH = 0.1  # of the last block; less before it
_PREFIX = ("cls_token", "reg_token", "dist_token")


class WindowAttention(nn.Module):
    """Attention among the tokens of a window, or of the whole map, with a bias for where they lie to each other.

    The bias of query q for a key is q · rows[dy] + q · columns[dx], where dy and dx are the distances in patches. Both
    tables start at zero. The projections are those of the transformer and stay there; this module holds the tables.

    A map that is no multiple of the window is padded behind the norm by zeros, which are attended to; one that fits
    into a window is left as it is.

    Detectron2 has a global block's table for images of one size, and stretches it to those of another. Images of many
    sizes come here, and a distance means the same in all of them.

    Args:
        head_dim: channels of each head.
        window: side of the windows in patches; None for the whole map.

    Source: Li et al., "Exploring plain vision transformer backbones for object detection" (ViTDet), ECCV 2022, section
    3; the bias is equation 4 of Li et al., "MViTv2", CVPR 2022.
    """

    def __init__(self, head_dim: int, window: int | None) -> None:
        super().__init__()
        self.window = window
        distances = 2 * (window or _LONGEST) - 1
        self.rows = nn.Parameter(torch.zeros(distances, head_dim))
        self.columns = nn.Parameter(torch.zeros(distances, head_dim))

    def forward(self, attention: Any, x: Tensor) -> Tensor:
        """Tokens (B, h, w, C) -> as many, by the projections of timm's ``attention``."""
        height, width = x.shape[1:3]
        if self.window is None or max(height, width) <= self.window:
            return self._attend(attention, x)
        windows, padded = window_partition(x, self.window)
        result: Tensor = window_unpartition(self._attend(attention, windows), self.window, (height, width), padded)
        return result

    def _attend(self, attention: Any, x: Tensor) -> Tensor:
        batch, height, width, _ = x.shape
        projected = attention.qkv(x).view(batch, height * width, 3, attention.num_heads, -1)
        query, key, value = projected.permute(2, 0, 3, 1, 4).unbind(0)  # (B, heads, N, D) each
        query, key = attention.q_norm(query), attention.k_norm(key)
        place = query.unflatten(2, (height, width))
        down = torch.einsum("bnhwd,hkd->bnhwk", place, _by_distance(self.rows, height))
        across = torch.einsum("bnhwd,wkd->bnhwk", place, _by_distance(self.columns, width))
        bias = (down[..., :, None] + across[..., None, :]).flatten(4).flatten(2, 3)  # (B, heads, N, N)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        result: Tensor = attention.proj(mixed.transpose(1, 2).reshape(batch, height, width, -1))
        return result


class WindowedTransformer(nn.Module):
    """A backbone's vision transformer that attends in windows, but for the last block of each quarter of its depth.

    Everything is the backbone's own but what tokens know of their distances (:class:`WindowAttention`) and stochastic
    depth. So weights of a plain transformer fit, and until the tables have learned something, windows that cover the
    map make it a plain transformer. Class and register tokens are left out, and no longer trained. Unlike Detectron2's,
    the map is taken behind the final norm, as in pre-training.

    Args:
        backbone: of patches of 16 px; its blocks get stochastic depth.
        window: side of the windows in patches.

    Raises:
        UserError: the backbone is no such transformer.
    """

    def __init__(self, backbone: Backbone, window: int = WINDOW) -> None:
        super().__init__()
        check_transformer(backbone)
        self.backbone = backbone
        blocks = self._network.blocks
        everywhere = global_blocks(len(blocks))
        self.attention = nn.ModuleList(
            WindowAttention(block.attn.head_dim, None if i in everywhere else window) for i, block in enumerate(blocks)
        )
        for block, rate in zip(blocks, torch.linspace(0, _DROP_PATH, len(blocks)).tolist(), strict=True):
            block.drop_path1, block.drop_path2 = DropPath(rate), DropPath(rate)
        for name in _PREFIX:
            token = getattr(self._network, name, None)
            if token is not None:
                token.requires_grad_(False)

    @property
    def _network(self) -> Any:
        return self.backbone.net.model

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) -> the map (B, C, H / 16, W / 16)."""
        network = self._network
        x = network.patch_embed(pixels)  # (B, h, w, C)
        if network.pos_embed is not None:
            x = x + self._positions(x.shape[1], x.shape[2])
        x = network.norm_pre(x)
        for block, attend in zip(network.blocks, self.attention, strict=True):
            x = x + block.drop_path1(block.ls1(attend(block.attn, block.norm1(x))))
            x = x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))
        result: Tensor = network.norm(x).permute(0, 3, 1, 2)
        return result

    def _positions(self, height: int, width: int) -> Tensor:
        """The patches' position embeddings for a map of another size, interpolated as timm does, (1, h, w, C)."""
        network = self._network
        prefix = 0 if network.no_embed_class else network.num_prefix_tokens
        sizes = [height, width], list(network.patch_embed.grid_size)
        positions: Tensor = resample_abs_pos_embed(network.pos_embed[:, prefix:], *sizes, num_prefix_tokens=0)
        return positions.unflatten(1, (height, width))

    def layers(self) -> list[list[nn.Parameter]]:
        """The parameters of what patches pass, layer by layer: the embedding, then each block."""
        network = self._network
        blocks = [[*b.parameters(), *a.parameters()] for b, a in zip(network.blocks, self.attention, strict=True)]
        positions = [] if network.pos_embed is None else [network.pos_embed]
        return [[*network.patch_embed.parameters(), *positions, *network.norm_pre.parameters()], *blocks]

    def positions(self) -> list[nn.Parameter]:
        """All position embeddings."""
        tables = [table for attend in self.attention for table in attend.parameters()]
        return tables if self._network.pos_embed is None else [self._network.pos_embed, *tables]


def global_blocks(depth: int) -> set[int]:
    """The blocks, from 0, that attend to the whole map: 2, 5, 8 and 11 of 12."""
    return {-(-(part + 1) * depth // _GLOBAL) - 1 for part in range(_GLOBAL)}


def check_transformer(backbone: Backbone) -> None:
    """Check that a backbone is a vision transformer that can attend in windows.

    Raises:
        UserError: it is not.
    """
    network = getattr(backbone.net, "model", None)
    if backbone.stages != (4,) or not all(_is_plain(block) for block in getattr(network, "blocks", [None])):
        raise UserError(
            f"vitdet needs a plain vision transformer with patches of 16 px, which {backbone.name} is not; take "
            "vit_small_patch16_224, say, or another detector for a ConvNet"
        )


def _is_plain(block: Any) -> bool:
    """Whether a block is made of what :meth:`WindowedTransformer.forward` runs, and nothing else."""
    if type(block) is not Block or type(block.attn) is not Attention:
        return False
    unnormed = isinstance(getattr(block.attn, "norm", nn.Identity()), nn.Identity)
    return unnormed and getattr(block.attn, "gate", None) is None


def _by_distance(table: Tensor, size: int) -> Tensor:
    """(2 S - 1, D) by distance -> (size, size, D) by query and key; what is farther apart than S - 1 counts as that."""
    farthest = len(table) // 2
    place = torch.arange(size, device=table.device)
    return table[(place[:, None] - place).clamp(-farthest, farthest) + farthest]
