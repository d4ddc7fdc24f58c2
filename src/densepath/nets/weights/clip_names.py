"""Image towers of CLIP, of transformers and of OpenCLIP: their tensors under timm's names, and their configuration."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from densepath.nets.weights.model_folders import settings_in

# Their names, then timm's. Prefixes such as "vision_model." remain; the text tower's tensors do not matter.
_RENAMED = (
    (r"embeddings\.patch_embedding\.|(?:(?<=^)|(?<=\.))conv1\.", "patch_embed.proj."),
    (r"(?:embeddings\.)?class_embedding$", "cls_token"),
    (r"embeddings\.position_embedding\.weight$|positional_embedding$", "pos_embed"),
    (r"pre_layrnorm\.|ln_pre\.", "norm_pre."),
    (r"post_layernorm\.|ln_post\.", "norm."),
    (r"encoder\.layers\.|transformer\.resblocks\.", "blocks."),
    (r"\.(?:layer_norm|ln_)([12])\.", r".norm\1."),
    (r"\.(?:self_attn\.|attn\.)out_proj\.", ".attn.proj."),
    (r"\.attn\.in_proj_", ".attn.qkv."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
)
_HEAD_WIDTH, _EPSILON = 64, 1e-5  # where a configuration does not give them


def clip_to_timm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of an image tower of CLIP under timm's names; those of other networks as they are.

    Args:
        state: the tensors, under their names in the file.
    """
    if not any(key.endswith("class_embedding") for key in state):
        return dict(state)
    named: dict[str, Tensor] = {}
    for key, value in state.items():
        for pattern, new in _RENAMED:
            key = re.sub(pattern, new, key)
        if key.endswith(("cls_token", "pos_embed")):
            value = value.reshape(1, -1, value.shape[-1])
        named[key] = value
    for key in [key for key in named if ".self_attn.q_proj." in key]:
        parts = [named.pop(key.replace(".q_proj.", f".{part}_proj.")) for part in "qkv"]
        named[key.replace(".self_attn.q_proj.", ".attn.qkv.")] = torch.cat(parts)
    return named


def clip_arguments(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the shapes of an image tower do not show: arguments for timm's network, or None for other networks.

    Args:
        config: the config.json of a CLIP model or of its image tower in transformers, or OpenCLIP's configuration.
    """
    if str(config.get("model_type", "")) in ("clip", "clip_vision_model"):
        own: Mapping[str, Any] = settings_in(config, "vision_config") or config
        return {
            "num_heads": own.get("num_attention_heads", 12),
            "norm_eps": own.get("layer_norm_eps", _EPSILON),
            "act_layer": own.get("hidden_act", "quick_gelu"),
            "pos_antialias": False,  # positions are interpolated without
        }
    tower = settings_in(settings_in(config, "model_cfg"), "vision_cfg")
    if not isinstance(tower.get("width"), int) or not isinstance(tower.get("layers"), int):  # ResNets, timm's networks
        return None
    quick = config["model_cfg"].get("quick_gelu", False)
    return {
        "num_heads": tower["width"] // tower.get("head_width", _HEAD_WIDTH),
        "norm_eps": _EPSILON,
        "act_layer": "quick_gelu" if quick else "gelu",
    }
