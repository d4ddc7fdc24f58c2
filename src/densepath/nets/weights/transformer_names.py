"""Vision transformers of other libraries: their tensors under timm's names, and the backbone that they belong to."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from inspect import signature
from math import isqrt
from typing import Any

import torch
from torch import Tensor, nn

from densepath.nets.backbones.names import GATED, HIPT_REGION, create_network, join_name, parse_name
from densepath.nets.weights.layouts import trained_first

_PATCH = "patch_embed.proj.weight"
_QUERY_NORM = "blocks.0.attn.q_norm.weight"
_MODULES = ("timm.models.vision_transformer", "timm.models.deit")
_BY_WIDTH = {
    192: "vit_tiny_patch16_224",
    384: "vit_small_patch16_224",
    768: "vit_base_patch16_224",
    1024: "vit_large_patch16_224",
    1280: "vit_huge_patch14_224",
    1408: "vit_giant_patch14_224",
    1536: "vit_giant_patch14_dinov2",
}
_HIDDEN = ("num_heads", "act_layer")  # arguments of which shapes give only a default
HEAD_WIDTH = 64  # channels of a head where no configuration gives the number of heads

# transformers' names, in its files and in the networks of its version 5, then timm's; without the network's prefix
_FOREIGN = "embeddings.patch_embeddings.projection.weight"
_MODEL = re.compile(r"(?:vit|dinov2|dinov2_with_registers)\.$")  # the end of the prefix in a network with a head
_RENAMED = (
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.", ""),
    (r"^encoder\.layer\.|^layers\.", "blocks."),
    (r"\.attention\.(?:output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.attention\.(?:attention\.query|q_proj)\.", ".attn.q."),
    (r"\.attention\.(?:attention\.key|k_proj)\.", ".attn.k."),
    (r"\.attention\.(?:attention\.value|v_proj)\.", ".attn.v."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"^(blocks\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
    (r"\.mlp\.down_proj\.", ".mlp.fc2."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
    (r"^layernorm\.", "norm."),
)
# The parts of which timm has one tensor, in its order
_JOINED = {
    ".attn.qkv.": (".attn.q.", ".attn.k.", ".attn.v."),
    ".mlp.fc1.": (".mlp.gate_proj.", ".mlp.up_proj."),
}
_REGIONS = ((r"(^|\.)phi\.0\.", r"\1patch_embed.proj."),)  # HIPT's transformer of regions
# DINOv2's own names, and transformers' for the same layers
_GATED_LAYERS = ((r"\.mlp\.(?:w12|weights_in)\.", ".mlp.fc1."), (r"\.mlp\.(?:w3|weights_out)\.", ".mlp.fc2."))
_CHUNKED = re.compile(r"((?:.+\.)?)blocks\.\d+\.\d+\.attn\.qkv\.weight")


def to_timm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a ViT or DINOv2 of ``transformers``, of DINOv2's own code, or of HIPT, under timm's names.

    Other tensors keep their names, and so do prefixes.

    The query, key and value projections are joined, and the two halves of gated layers. In a DINOv2 with register
    tokens the class token has a position and the registers have none; in timm neither has one, so that of the class
    token is added to it.

    Args:
        state: the tensors, under their names in the file.
    """
    named: dict[str, Tensor] = {}
    prefixes = [key.removesuffix(_FOREIGN) for key in state if re.fullmatch(rf"(?:.+\.)?{re.escape(_FOREIGN)}", key)]
    for key, value in state.items():
        name = _renamed(key, prefixes)
        named[name] = value[..., None, None] if name.endswith(_PATCH) and value.ndim == 2 else value
    for whole, (first, *others) in _JOINED.items() if prefixes else ():
        for key in [key for key in named if first in key]:
            parts = [key, *(key.replace(first, other) for other in others)]
            if named.keys() >= {*parts}:  # BEiT's keys have no bias
                named[key.replace(first, whole)] = torch.cat([*map(named.pop, parts)])
    for key in [key for key in named if key.endswith("register_tokens")]:
        prefix = key.removesuffix("register_tokens")
        positions = named.get(f"{prefix}pos_embed")
        if positions is not None and f"{prefix}cls_token" in named:
            named[f"{prefix}reg_token"] = named.pop(key)
            named[f"{prefix}cls_token"] = named[f"{prefix}cls_token"] + positions[:, :1]
            named[f"{prefix}pos_embed"] = positions[:, 1:]
    return _without_chunks(named)


def _renamed(key: str, prefixes: Sequence[str]) -> str:
    """timm's name of a tensor; ``prefixes`` are those of the networks of transformers in its file."""
    prefix = max((prefix for prefix in prefixes if key.startswith(prefix)), key=len, default=None)
    rules = (*_GATED_LAYERS, *_REGIONS) if prefix is None else (*_RENAMED, *_GATED_LAYERS)
    tail = key.removeprefix(prefix or "")
    for pattern, new in rules:
        tail = re.sub(pattern, new, tail)
    return _MODEL.sub("", prefix or "") + tail


def _without_chunks(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of transformers whose training divided the blocks into chunks, as DINOv2's, without the chunks.

    A block keeps its number: the seventh is ``blocks.1.6`` if it is in the second chunk.
    """
    networks = {match[1] for match in map(_CHUNKED.fullmatch, state) if match and f"{match[1]}{_PATCH}" in state}
    named = dict(state)
    for prefix in networks:
        chunk = re.compile(rf"({re.escape(prefix)}blocks\.)\d+\.(?=\d+\.)")
        named = {chunk.sub(r"\1", key) if chunk.match(key) else key: value for key, value in named.items()}
    return named if len(named) == len(state) else state


def transformer_prefixes(state: Mapping[str, Tensor]) -> list[str]:
    """The prefixes of the vision transformers with timm's names in a file."""
    return [
        key.removesuffix(_PATCH) for key in state if key.endswith(_PATCH) and key.removesuffix(_PATCH)[-1:] in ("", ".")
    ]


def trained_transformer(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the vision transformer in a file, without their prefix; all if there is none.

    Of several the first trained one is taken, not its momentum copy: as ``match_names`` does for the network of a name.
    """
    prefix = min(transformer_prefixes(state), key=trained_first, default="")
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def guess_transformer(state: Mapping[str, Tensor]) -> str | None:
    """The name of the vision transformer in a file by its tensors alone; None if there is none."""
    return name_transformer(trained_transformer(state))


def name_transformer(
    state: Mapping[str, Tensor], architecture: str | None = None, known: Mapping[str, Any] | None = None
) -> str | None:
    """The name of the backbone whose tensors these are (see ``names.py``).

    Everything that shapes show follows from them: patches, width, depth, registers, layer scale, gated layers, the grid
    of positions. Released configurations often lack some of it: UNI's has its layer scale where timm does not look for
    it, and those of Virchow cannot name the gated layers.

    Args:
        state: tensors under timm's names, without a prefix.
        architecture: the timm architecture of its configuration, which gives what neither shapes nor ``known`` do; by
            default a plain one of the same width.
        known: arguments from the configuration. Those that shapes show are ignored, except no_embed_class, which they
            may not show; all others become a part of the name: num_heads, act_layer, norm_eps, and also unknown ones.

    Returns:
        The name; None if the tensors are not those of a plain vision transformer.
    """
    if not {_PATCH, "blocks.0.norm1.weight", "blocks.0.mlp.fc1.weight"} <= state.keys() or state[_PATCH].ndim != 4:
        return None
    if state[_PATCH].shape[-1] == 1:  # of features
        return HIPT_REGION
    known, width = dict(known or {}), state[_PATCH].shape[0]
    architecture = architecture or _BY_WIDTH.get(width, "vit_base_patch16_224")
    own = _arguments_of(architecture)
    given = own and _shown(state, known.pop("no_embed_class", own["no_embed_class"]))
    if not own or not given:
        return None
    given["num_heads"] = width // shown if (shown := head_width(state)) else own["num_heads"]
    if not shown and width != own["embed_dim"]:
        given["num_heads"] = max(1, width // HEAD_WIDTH)
    given["act_layer"] = "silu" if given["mlp_layer"] in GATED else "gelu"
    if given["mlp_layer"] == own["mlp_layer"]:
        given["act_layer"] = own["act_layer"]
    hidden = {key: value for key, value in known.items() if key not in given or key in _HIDDEN}
    return join_name(
        architecture, {key: value for key, value in {**given, **hidden}.items() if key not in own or value != own[key]}
    )


def head_width(state: Mapping[str, Tensor]) -> int:
    """The channels of a head of the vision transformer in a file, which only norms of queries show; 0 without any.

    A norm of all heads together, over the whole width, does not show them.
    """
    own = trained_transformer(state)
    if not {_PATCH, _QUERY_NORM} <= own.keys():
        return 0
    width, shown = len(own[_PATCH]), len(own[_QUERY_NORM])
    return shown if 0 < shown < width and width % shown == 0 else 0


def hidden_differences(name: str, other: str) -> dict[str, Any]:
    """The arguments in which two vision transformers may differ although their tensors have the same shapes.

    Args:
        name, other: names of backbones (see ``names.py``).

    Returns:
        argument -> its value in ``other``; empty for other networks.
    """
    import timm
    from timm.models.vision_transformer import VisionTransformer

    both: list[dict[str, Any]] = []
    for architecture, arguments in map(parse_name, (name, other)):
        own = _arguments_of(architecture) if timm.is_model(architecture) else None
        if own is None:
            return {}
        hidden = (*_HIDDEN, "norm_eps", "pos_antialias")
        both.append({key: value for key, value in {**own, **arguments}.items() if key in hidden or key not in own})
    # An argument that only one of them names is, in the other, as timm's constructor has it.
    usual = {key: each.default for key, each in signature(VisionTransformer.__init__).parameters.items()}
    first, second = (usual | own for own in both)
    return {key: second.get(key) for key in both[1] | both[0] if first.get(key) != second.get(key)}


def _shown(state: Mapping[str, Tensor], beside: bool) -> dict[str, Any] | None:
    """The arguments of timm's constructor that the shapes of a transformer show; None without a square grid.

    Args:
        state: its tensors.
        beside: whether the prefix of the patches has no positions, where the shapes allow both.
    """
    width, _, patch, _ = state[_PATCH].shape
    class_token = "cls_token" in state
    registers = state["reg_token"].shape[1] if "reg_token" in state else 0
    positions = state["pos_embed"].shape[1] if "pos_embed" in state else 0
    for no_embed_class in (beside, not beside):
        patches = positions - (0 if no_embed_class else class_token + registers)
        if patches > 0 and isqrt(patches) ** 2 == patches:
            break
    else:
        return None
    inner, gated = state["blocks.0.mlp.fc1.weight"].shape[0], "Mlp"
    if inner == 2 * state["blocks.0.mlp.fc2.weight"].shape[1]:
        gated = "SwiGLUPacked"
    return {
        "img_size": isqrt(patches) * patch,
        "patch_size": patch,
        "embed_dim": width,
        "depth": len({key.split(".")[1] for key in state if key.startswith("blocks.")}),
        "mlp_ratio": _ratio(inner, width),
        "qkv_bias": "blocks.0.attn.qkv.bias" in state,
        "qk_norm": _QUERY_NORM in state,
        "init_values": 1e-5 if "blocks.0.ls1.gamma" in state else None,
        "class_token": class_token,
        "reg_tokens": registers,
        "no_embed_class": no_embed_class and class_token + registers > 0,
        "pre_norm": "norm_pre.weight" in state,
        "mlp_layer": gated,
        "global_pool": "token" if class_token else "",
    }


def _ratio(inner: int, width: int) -> float:
    """A ratio that timm, which truncates, turns into this number of channels."""
    return inner / width if int(width * (inner / width)) == inner else (inner + 0.5) / width


def _arguments_of(architecture: str) -> dict[str, Any] | None:
    """The arguments of a timm architecture as :func:`name_transformer` gives them; None for other networks."""
    from timm.models import model_entrypoint  # timm takes seconds to import
    from timm.models.vision_transformer import VisionTransformer

    if str(model_entrypoint(architecture).__module__) not in _MODULES:
        return None
    with torch.device("meta"):
        model = create_network(architecture, num_classes=0, weight_init="skip")
    if type(model) is not VisionTransformer:
        return None
    shown = _shown(model.state_dict(), model.no_embed_class)
    block: Any = model.blocks[0]
    if shown is None or not hasattr(block.mlp, "act"):
        return None
    act = block.mlp.act
    return {
        **shown,
        "num_heads": block.attn.num_heads,
        "act_layer": {nn.GELU: "gelu", nn.SiLU: "silu"}.get(type(act), type(act).__name__),
        "norm_eps": block.norm1.eps,
        "pos_antialias": True,
    }
