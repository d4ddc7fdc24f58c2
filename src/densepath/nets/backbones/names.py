"""Names of timm networks with arguments, e.g. ``vit_large_patch16_224(init_values=1e-05, reg_tokens=4)``.

Published networks often differ from the timm architecture that they name. Such a name is all that is needed to build
one again, so it is what configurations, exported weights and detectors record.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import nn

from densepath.core.errors import UserError

GATED = ("SwiGLUPacked", "SwiGLU", "GluMlp")  # classes of timm.layers for ``mlp_layer``
OWN_PARTS = {"halve_after", "patch_gelu"}  # arguments that no network of timm has
# Arguments of timm.create_model that are given elsewhere: in a name they would have no effect, or load weights.
_ELSEWHERE = (
    "pretrained",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "checkpoint_path",
    "features_only",
    "num_classes",
    "in_chans",
)
HIPT_REGION = "vit_tiny_patch16_224(img_size=14, patch_size=1, depth=6, num_heads=6, patch_gelu=True, pos_offset=0.1)"


def parse_name(name: str) -> tuple[str, dict[str, Any]]:
    """The architecture of a name, and its arguments: numbers, texts, True, False or None.

    Raises:
        UserError: the name has no such form.
    """
    if not name.endswith(")"):
        return name, {}
    try:
        call = ast.parse(name, mode="eval").body
        if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name)) or call.args:
            raise ValueError("not a call with keywords")
        names = [keyword.arg for keyword in call.keywords]
        if None in names or len({*names}) < len(names):
            raise ValueError("not different keywords")
        return call.func.id, {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError) as error:
        raise UserError(
            f"{name[:100]!r} is not the name of a backbone; write it as architecture(argument=value, ...)"
        ) from error


def without_tag(name: str) -> str:
    """The name of a network without the tag of weights, which comes before its arguments."""
    architecture, arguments, end = name.partition("(")
    return architecture.split(".")[0] + arguments + end


def check_arguments(name: str) -> None:
    """Check that a name has no argument that would be ignored.

    Raises:
        UserError: it has one.
    """
    if found := [key for key in _ELSEWHERE if key in parse_name(name)[1]]:
        raise UserError(f"the backbone {name} has the argument {found[0]}, which has no effect there; leave it out")


def why_not_built(name: str, error: Exception) -> str:
    """Why timm did not build the network of a name with arguments, for an error message."""
    architecture, _ = parse_name(name)
    unknown = re.search(r"unexpected keyword argument.*?'(\w+)'", str(error))
    if unknown:
        return f"timm's {architecture} has no argument {unknown[1]}, which {name} gives; correct it, or leave it out"
    reason = str(error) or "it gives no reason"
    return f"timm cannot build {name} ({type(error).__name__}: {reason}); correct its arguments"


def join_name(architecture: str, arguments: Mapping[str, Any]) -> str:
    """The inverse of :func:`parse_name`."""
    if not arguments:
        return architecture
    return f"{architecture}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})"


def create_network(name: str, **options: Any) -> Any:
    """timm's network of a name, with ``options`` for ``timm.create_model``, which override its arguments.

    Besides timm's own arguments, a vision transformer takes ``norm_eps``, the epsilon of its layer norms,
    ``mlp_layer`` as one of the names in ``GATED``, and

    - ``pos_antialias=False``: its positions are interpolated without antialiasing, as in ``transformers``;
    - ``pos_offset=0.1``: and to a grid that is larger by that, as in DINO and HIPT;
    - ``halve_after=8``: the blocks after the eighth have half the width and half the heads;
    - ``patch_gelu=True``: a GELU follows the embedding of patches, as in HIPT's transformer of regions.
    """
    import timm

    architecture, arguments = parse_name(name)
    offset, after = arguments.pop("pos_offset", 0.0), arguments.pop("halve_after", None)
    antialias, gelu = arguments.pop("pos_antialias", not offset), arguments.pop("patch_gelu", False)
    if "norm_eps" in arguments:
        arguments["norm_layer"] = partial(nn.LayerNorm, eps=arguments.pop("norm_eps"))
    if "mlp_layer" in arguments:
        arguments["mlp_layer"] = {name: getattr(timm.layers, name) for name in GATED}[arguments["mlp_layer"]]
    network: Any = timm.create_model(architecture, **{**arguments, **options})
    if after is not None:
        from densepath.nets.backbones.hipt import halve_width

        half = {"embed_dim": network.embed_dim // 2, "num_heads": network.blocks[0].attn.num_heads // 2}
        halve_width(network, timm.create_model(architecture, **{**arguments, **options, **half}), after)
    if gelu:
        network.patch_embed.norm = nn.GELU()
    if not antialias:
        from densepath.nets.backbones.plain_positions import PlainPositions

        network.__class__ = PlainPositions
        network.pos_offset = offset
    return network
