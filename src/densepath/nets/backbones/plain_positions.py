"""A vision transformer whose position embeddings are interpolated as in ``transformers``."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor


class PlainPositions(VisionTransformer):
    """timm's vision transformer, with position embeddings interpolated without antialiasing.

    Attributes:
        pos_offset: what is added to the sides of the new grid for its distances, as in DINO and HIPT.

    Source: ``ViTModel`` and ``Dinov2Model`` of transformers; its ``Dinov2WithRegistersModel`` interpolates as timm. The
    released DINO (ICCV 2021) adds 0.1, against an error of rounding that torch had.
    """

    pos_offset: float = 0.0

    def _pos_embed(self, x: Tensor) -> Tensor:
        tokens = x.flatten(1, 2)
        prefix = [token.expand(len(x), -1, -1) for token in (self.cls_token, self.reg_token) if token is not None]
        assert self.pos_embed is not None
        own = 0 if self.no_embed_class else self.num_prefix_tokens
        positions = torch.cat((self.pos_embed[:, :own], patch_positions(self, x.shape[1], x.shape[2])), dim=1)
        if self.no_embed_class:
            return torch.cat((*prefix, tokens + positions), dim=1)
        return torch.cat((*prefix, tokens), dim=1) + positions


def patch_positions(model: Any, height: int, width: int) -> Tensor:
    """The position embeddings of the patches, (1, h * w, C), interpolated to a grid as the transformer does it."""
    prefix = 0 if model.no_embed_class else model.num_prefix_tokens
    positions: Tensor = model.pos_embed[:, prefix:]
    grid = tuple(model.patch_embed.grid_size)
    if not isinstance(model, PlainPositions):
        resized: Tensor = resample_abs_pos_embed(positions, [height, width], list(grid), num_prefix_tokens=0)
        return resized
    if (height, width) == grid:
        return positions
    stored = positions.unflatten(1, grid).permute(0, 3, 1, 2).float()
    if model.pos_offset:
        scale = tuple((side + model.pos_offset) / own for side, own in zip((height, width), grid, strict=True))
        spread = F.interpolate(stored, scale_factor=scale, mode="bicubic", align_corners=False)
    else:
        spread = F.interpolate(stored, (height, width), mode="bicubic", align_corners=False)
    return spread.flatten(2).transpose(1, 2).to(positions.dtype)
