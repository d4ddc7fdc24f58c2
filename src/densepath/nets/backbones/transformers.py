"""Vision transformers as backbones: one map, the patch tokens after the last block and the final norm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isqrt
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from densepath.core.errors import UserError
from densepath.nets.backbones.names import create_network, parse_name

_MODULES = ("timm.models.vision_transformer", "timm.models.deit", "timm.models.eva")
_SMALLEST, _LARGEST = 6, 45  # pixels of a patch, which is the stride of f3, f4 or f5: that of the nearest power of 2
_POSITIONS = "model.pos_embed"


def is_transformer(name: str) -> bool:
    """Whether a timm name is one of a plain vision transformer: all of its blocks see the same tokens."""
    from timm.models import model_entrypoint

    return str(model_entrypoint(parse_name(name)[0]).__module__) in _MODULES


def build_transformer(name: str, pretrained: bool = False, channels: int = 3) -> nn.Module:
    """A vision transformer in timm's wrapper for feature maps, for images of any size that its patches divide.

    timm interpolates its position embeddings to the size of the images in each pass.

    Args:
        name: name of a timm vision transformer, with arguments (see ``names.py``), or with the tag of its weights if
            they are loaded.
        pretrained: whether to load timm's weights.
        channels: channels of the images.

    Raises:
        UserError: its patches are not squares of 6 to 45 px, or it has no norm after its last block.
    """
    model = create_network(name, pretrained=pretrained, num_classes=0, dynamic_img_size=True, in_chans=channels)
    patch = model.patch_embed.patch_size
    if patch[0] != patch[1] or not (_SMALLEST <= patch[0] <= _LARGEST or patch[0] == 1):
        raise UserError(
            f"{name} has patches of {patch[0]} x {patch[1]} px; choose a vision transformer with square patches of "
            f"{_SMALLEST} to {_LARGEST} px, e.g. vit_small_patch16_224"
        )
    if isinstance(model.norm, nn.Identity):
        raise UserError(
            f"{name} has only a norm of its pooled features; choose another vision transformer, "
            "e.g. vit_small_patch16_224"
        )
    return wrap_transformer(model)


def wrap_transformer(model: Any) -> nn.Module:
    """timm's wrapper for feature maps around a vision transformer: one map, after the last block and the final norm."""
    from timm.models._features import FeatureGetterNet

    network = FeatureGetterNet(model, out_indices=(len(model.feature_info) - 1,), norm=True)
    network.pretrained_cfg = model.pretrained_cfg  # as in timm's own wrappers
    return network


def check_grid(net: nn.Module, sides: Sequence[int], name: str | Path) -> None:
    """Check that a network has the grid of patches of weights of images that are not square.

    Args:
        net: any backbone's network; only a vision transformer has position embeddings.
        sides: height and width of the images of the weights in pixels; empty if they are square.
        name: of the weights, for messages.

    Raises:
        UserError: it has another grid.
    """
    if not sides or _POSITIONS not in net.state_dict():
        return
    made: Any = net.model
    grid = tuple(side // patch for side, patch in zip(sides, made.patch_embed.patch_size, strict=True))
    if grid != tuple(made.patch_embed.grid_size):
        size = f"{sides[0]} x {sides[1]} px"
        raise UserError(
            f"{name} has the positions of images of {size}, and densepath builds vision transformers for square ones; "
            f"in Python, pass the network as backbone, built by timm with img_size=({sides[0]}, {sides[1]}) and "
            "dynamic_img_size=True"
        )


def resize_positions(net: nn.Module, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Interpolate the position embeddings of a checkpoint to the grid of a network, as timm does.

    Args:
        net: any backbone's network; only a vision transformer has position embeddings.
        found: the tensors, under the network's names.

    Returns:
        The same tensors. Embeddings are not changed if those of the patches are not a square grid.
    """
    own, theirs = net.state_dict().get(_POSITIONS), found.get(_POSITIONS)
    if own is None or theirs is None or theirs.shape == own.shape or theirs.ndim != 3:
        return dict(found)
    model: Any = net.model
    prefix = 0 if model.no_embed_class else model.num_prefix_tokens
    patches = theirs.shape[1] - prefix
    if patches < 1 or isqrt(patches) ** 2 != patches:
        return dict(found)
    grid = list(model.patch_embed.grid_size)
    from timm.layers import resample_abs_pos_embed

    return {**found, _POSITIONS: resample_abs_pos_embed(theirs, grid, num_prefix_tokens=prefix)}
