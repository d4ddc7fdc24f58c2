"""Parts of vision transformers that timm does not have: patches of features, and a width that halves on the way."""

from __future__ import annotations

from typing import Any

from timm.models.vision_transformer import Block
from torch import Tensor, nn

from densepath.core.errors import UserError


class NarrowBlock(Block):
    """timm's block, after a linear layer that changes the width."""

    narrow: nn.Linear

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return super().forward(self.narrow(x), *args, **kwargs)


def halve_width(model: Any, narrower: Any, after: int) -> None:
    """Replace the last blocks of a vision transformer by those of one of half its width, after a linear layer.

    Args:
        model: the transformer.
        narrower: the same with half the width and half the heads; its last blocks and its norm are taken.
        after: number of blocks that remain.

    Raises:
        UserError: no block would remain, or none be replaced.

    Source: DiRL (Kapse et al.), appendix A: "-H", 8 blocks of ViT-S and 4 of ViT-T as in HIPT, trained together.
    """
    if not 0 < after < len(model.blocks):
        raise UserError(f"the width can be halved after 1 to {len(model.blocks) - 1} blocks, not {after}")
    first: Any = narrower.blocks[after]
    first.__class__ = NarrowBlock
    first.narrow = nn.Linear(model.embed_dim, narrower.embed_dim)
    nn.init.trunc_normal_(first.narrow.weight, std=0.02)
    nn.init.zeros_(first.narrow.bias)
    model.blocks = nn.Sequential(*model.blocks[:after], *narrower.blocks[after:])
    model.norm = narrower.norm
    model.num_features = model.head_hidden_size = narrower.num_features
    for info in model.feature_info[after:]:
        info["num_chs"] = narrower.num_features
