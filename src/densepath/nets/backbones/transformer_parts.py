"""The parts of a vision transformer: patch embeddings, positions, and the blocks on any of the tokens.

A pass of the whole network is ``encode(model, add_positions(model, embed_patches(model, pixels)))``. Tokens have timm's
order: the prefix (class and register tokens, ``model.num_prefix_tokens`` of them), then the patches row by row.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from densepath.core.errors import UserError
from densepath.nets.backbones.backbone import Backbone


def require_transformer(backbone: Backbone, method: str) -> Any:
    """timm's vision transformer in a backbone.

    Args:
        backbone: any backbone.
        method: name of the method that needs it, for the message.

    Raises:
        UserError: it is a ConvNet, or a transformer without absolute position embeddings.
    """
    model = getattr(backbone.net, "model", None)
    from timm.models.vision_transformer import VisionTransformer

    if not isinstance(model, VisionTransformer) or model.pos_embed is None:
        raise UserError(
            f"{method} needs a vision transformer with position embeddings, which {backbone.name} is not; "
            "choose one with --backbone, e.g. vit_small_patch16_224"
        )
    return model


def embed_patches(model: Any, pixels: Tensor) -> Tensor:
    """Embeddings (B, h, w, C) of the patches of images (B, 3, H, W), without positions."""
    embeddings: Tensor = model.patch_embed(pixels)
    return embeddings


def add_positions(model: Any, patches: Tensor) -> Tensor:
    """Patches (B, h, w, C) with their positions, after the prefix: (B, prefix + h * w, C).

    Position embeddings are interpolated to h x w by timm if the network's grid differs.
    """
    tokens: Tensor = model._pos_embed(patches)
    return tokens


def select_tokens(model: Any, tokens: Tensor, patches: Tensor) -> Tensor:
    """The prefix and some of the patches.

    Args:
        model: the transformer.
        tokens: (B, prefix + N, C).
        patches: (B, n) int64, indices of the patches, 0 to N - 1.

    Returns:
        (B, prefix + n, C).
    """
    prefix = model.num_prefix_tokens
    return torch.cat((tokens[:, :prefix], pick(tokens[:, prefix:], patches)), dim=1)


def pick(x: Tensor, patches: Tensor) -> Tensor:
    """The rows of (B, N, C) at the patches (B, n) int64: (B, n, C)."""
    return x.gather(1, patches.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


def narrows(blocks: Iterable[nn.Module]) -> bool:
    """Whether one of the blocks has another width than the one before (``halve_after``)."""
    return any(hasattr(block, "narrow") for block in blocks)


def run_blocks(model: Any, tokens: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
    """Tokens (B, T, C), any from :func:`add_positions`, after the blocks ``start`` to ``stop - 1``."""
    if start == 0:
        tokens = model.norm_pre(tokens)
    tokens = model.blocks[start:stop](tokens)
    return tokens


def encode(model: Any, tokens: Tensor) -> Tensor:
    """Tokens (B, T, C), any from :func:`add_positions`, after all blocks and the final norm."""
    tokens = model.norm(run_blocks(model, tokens))
    return tokens


def encode_visible(model: Any, pixels: Tensor, visible: Tensor) -> tuple[Tensor, Tensor, int, int]:
    """Encode only the visible patches.

    Args:
        model: the transformer.
        pixels: (B, 3, H, W).
        visible: (B, N) bool, on the CPU: the visible patches, equally many in each row.

    Returns:
        Tokens (B, prefix + n, C); the indices of their patches, (B, n) int64; rows and columns of the grid of patches.
    """
    patches = visible.nonzero()[:, 1].view(len(visible), -1).to(pixels.device, non_blocking=True)
    embeddings = embed_patches(model, pixels)
    tokens = encode(model, select_tokens(model, add_positions(model, embeddings), patches))
    return tokens, patches, embeddings.shape[1], embeddings.shape[2]


def choose_attention(blocks: Iterable[Any], device: torch.device) -> None:
    """Choose the faster attention of timm's blocks for training: fused, except in half precision on a CPU.

    There the backward pass of torch's fused attention takes most of a step: with ViT-T and 36 tokens, the passes of a
    training step are twice as fast with plain products of matrices.
    """
    fused = not (device.type == "cpu" and torch.is_autocast_enabled("cpu"))
    for block in blocks:
        if hasattr(block.attn, "fused_attn"):
            block.attn.fused_attn = fused


def sincos_positions(height: int, width: int, dim: int, device: torch.device | None = None) -> Tensor:
    """Sines and cosines of the row and of the column of each patch, (height * width, dim); ``dim`` is a multiple of 4.

    The channels have timm's order, which differs from MAE's; for a network with random weights this is equivalent.

    Source: MAE (CVPR 2022), appendix A.1, after Vaswani et al., NeurIPS 2017.
    """
    from timm.layers import build_sincos2d_pos_embed

    return build_sincos2d_pos_embed([height, width], dim, device=device)


def initialize_linear(module: nn.Module) -> None:
    """Initialize a linear layer with Xavier-uniform weights and zero biases, as in MAE's decoder."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)


@torch.no_grad()
def initialize_transformer(model: Any) -> None:
    """Initialize a transformer as MAE does: linear layers and the patch projection by Xavier's rule, without biases.

    Source: MAE (CVPR 2022), its released code; mmselfsup's MAE and EVA do the same.
    """
    model.apply(initialize_linear)
    weight = model.patch_embed.proj.weight
    weight.copy_(nn.init.xavier_uniform_(torch.empty_like(weight).flatten(1)).view_as(weight))
    if model.cls_token is not None:
        nn.init.normal_(model.cls_token, std=0.02)


@torch.no_grad()
def fix_positions(model: Any) -> None:
    """Replace the learned positions of a transformer by fixed ones: sines and cosines, and zero for the prefix.

    They are computed for the network's own grid of patches, so the exported network has them; for images of another
    size they are interpolated, in training as later.

    Raises:
        UserError: its width is not a multiple of 4.
    """
    if model.embed_dim % 4:
        raise UserError(f"sin-cos positions need a width that is a multiple of 4, not {model.embed_dim}")
    height, width = model.patch_embed.grid_size
    positions = sincos_positions(height, width, model.embed_dim, model.pos_embed.device)
    model.pos_embed.zero_()
    model.pos_embed[:, -height * width :] = positions
    model.pos_embed.requires_grad_(False)
