"""A vision transformer for large images: windowed attention in most blocks, with relative positions."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from timm.models.vision_transformer import Attention, Block
from torch import Tensor, nn

from densepath.core.errors import UserError
from densepath.nets.backbones import Backbone
from densepath.nets.backbones.plain_positions import patch_positions

WINDOW = 14  # patches: the map of an image of 224 px
_GLOBAL = 4  # blocks with attention over the whole map
_LONGEST = 84  # patches of 16 px: the longest input map of a detector, for 1333 px with padding
_DROP_PATH = 0.1  # in the last block; it increases linearly over the blocks
_PREFIX = ("cls_token", "reg_token", "dist_token")


class WindowAttention(nn.Module):
    """Attention within windows, or over the whole map, with a relative position bias.

    The bias of query q for a key is q · rows[dy] + q · columns[dx], where dy and dx are the distances in patches. Both
    tables are initialized with zeros. The projections belong to the transformer; this module owns the tables.

    A map that is not a multiple of the window is padded after the norm with zeros, which take part in the attention; a
    map that fits into one window is not padded.

    In Detectron2 the table of a global block is for images of one size and is interpolated for other sizes. Here a
    distance has the same bias in images of any size.

    Args:
        head_dim: channels per head.
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
        """Tokens (B, h, w, C) -> tokens of the same shape, with the projections of timm's ``attention``."""
        batch, height, width, channels = x.shape
        rows, columns = self._window(height, width)
        x = F.pad(x, (0, 0, 0, -width % columns, 0, -height % rows))
        down, across = x.shape[1] // rows, x.shape[2] // columns
        windows = x.view(batch, down, rows, across, columns, channels).transpose(2, 3)
        windows = self._attend(attention, windows.reshape(-1, rows, columns, channels))
        x = windows.view(batch, down, across, rows, columns, channels).transpose(2, 3)
        return x.reshape(batch, down * rows, across * columns, channels)[:, :height, :width]

    def _window(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the windows on a map."""
        if self.window is None:
            return height, width
        if torch.jit.is_tracing():  # sizes are tensors; of a branch only one side would be recorded
            sides: Any = torch.stack((torch.as_tensor(height), torch.as_tensor(width)))
            rows, columns = torch.where(sides.max() <= self.window, sides, self.window).unbind()
            return rows, columns  # type: ignore[return-value]
        return (height, width) if max(height, width) <= self.window else (self.window, self.window)

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
    """A backbone's vision transformer with windowed attention, except in the last block of each quarter of its depth.

    All parameters belong to the backbone except the relative position biases (:class:`WindowAttention`), and stochastic
    depth is added. So weights of a plain transformer fit, and with zero tables and windows that cover the map it equals
    the plain transformer. Class and register tokens are left out, and not trained. Unlike in Detectron2, the map is
    taken after the final norm, as in pre-training.

    Args:
        backbone: a backbone with patches of 14 or 16 px; its blocks get stochastic depth.
        window: side of the windows in patches.

    Raises:
        UserError: the backbone is not such a transformer.
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
        """(B, 3, H, W) -> the map (B, C, H / p, W / p), for patches of p px."""
        network = self._network
        x = network.patch_embed(pixels)  # (B, h, w, C)
        if network.pos_embed is not None:
            x = x + patch_positions(network, *x.shape[1:3]).unflatten(1, x.shape[1:3])
        x = network.norm_pre(x)
        for block, attend in zip(network.blocks, self.attention, strict=True):
            x = x + block.drop_path1(block.ls1(attend(block.attn, block.norm1(x))))
            x = x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))
        result: Tensor = network.norm(x).permute(0, 3, 1, 2)
        return result

    def layers(self) -> list[list[nn.Parameter]]:
        """The parameters layer by layer: the embedding, then each block."""
        network = self._network
        blocks = [[*b.parameters(), *a.parameters()] for b, a in zip(network.blocks, self.attention, strict=True)]
        positions = [] if network.pos_embed is None else [network.pos_embed]
        return [[*network.patch_embed.parameters(), *positions, *network.norm_pre.parameters()], *blocks]

    def positions(self) -> list[nn.Parameter]:
        """All position embeddings."""
        tables = [table for attend in self.attention for table in attend.parameters()]
        return tables if self._network.pos_embed is None else [self._network.pos_embed, *tables]


def global_blocks(depth: int) -> set[int]:
    """The indices of the blocks with global attention: 2, 5, 8 and 11 of 12."""
    return {-(-(part + 1) * depth // _GLOBAL) - 1 for part in range(_GLOBAL)}


def check_transformer(backbone: Backbone) -> None:
    """Check that a backbone is a vision transformer that supports windowed attention.

    Raises:
        UserError: it is not.
    """
    network = getattr(backbone.net, "model", None)
    if backbone.stages != (4,) or not all(_is_plain(block) for block in getattr(network, "blocks", [None])):
        raise UserError(
            f"vitdet needs a plain vision transformer with patches of 14 or 16 px, which {backbone.name} is not; use "
            "for example vit_small_patch16_224, or another detector for a ConvNet"
        )


def _is_plain(block: Any) -> bool:
    """Whether a block consists only of what :meth:`WindowedTransformer.forward` computes."""
    if type(block) is not Block or type(block.attn) is not Attention:
        return False
    unnormed = isinstance(getattr(block.attn, "norm", nn.Identity()), nn.Identity)
    return unnormed and getattr(block.attn, "gate", None) is None


def _by_distance(table: Tensor, size: int) -> Tensor:
    """(2 S - 1, D) by distance -> (size, size, D) by query and key; distances are clamped to S - 1."""
    farthest = len(table) // 2
    place = torch.arange(size, device=table.device)
    return table[(place[:, None] - place).clamp(-farthest, farthest) + farthest]
