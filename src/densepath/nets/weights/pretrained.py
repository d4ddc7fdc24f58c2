"""The backbone that weights belong to, loaded, with the pixels that it was trained on."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from torch import Tensor, nn

from densepath.core.errors import UserError
from densepath.core.keywords import is_on_disk
from densepath.nets.backbones import Backbone, is_named
from densepath.nets.backbones.choose import choose_backbone
from densepath.nets.backbones.unet3d import name_unet3d
from densepath.nets.weights.backbone_weights import load_weights, read_weights, weights_file
from densepath.nets.weights.hub import is_hub_name
from densepath.nets.weights.layouts import match_names
from densepath.nets.weights.of_run import recorded_backbone
from densepath.nets.weights.pixels import pixels_of_weights
from densepath.nets.weights.published import (
    configuration_of,
    is_published,
    preprocessing,
    published_folder,
    read_published,
)
from densepath.nets.weights.transformer_names import guess_transformer, to_timm
from densepath.sources.pixel_source import PixelSpec

DEFAULT_BACKBONE = "resnet18"
GIVE_NETWORK = "in Python, pass the network as backbone to densepath.embed, probe, export or pretrain"
# Blocks of layer1 to layer4, and whether they are bottlenecks
_RESNETS = {
    ((2, 2, 2, 2), False): "resnet18",
    ((3, 4, 6, 3), False): "resnet34",
    ((2, 2, 2, 2), True): "resnet26",
    ((3, 4, 6, 3), True): "resnet50",
    ((3, 4, 23, 3), True): "resnet101",
    ((3, 8, 36, 3), True): "resnet152",
}
_PLAIN = (64, 64)  # the shape of layer1.0.conv2 in these
# The same in those whose blocks are wider or grouped
_VARIANTS: dict[tuple[str, tuple[int, ...]], str] = {
    ("resnet50", (128, 128)): "wide_resnet50_2",
    ("resnet101", (128, 128)): "wide_resnet101_2",
    ("resnet50", (128, 4)): "resnext50_32x4d",
    ("resnet101", (256, 8)): "resnext101_32x8d",
    ("resnet101", (256, 4)): "resnext101_64x4d",
}
_LAYERS = ("conv1", "conv2", "conv3", "bn1", "bn2", "bn3", "downsample.0", "downsample.1")


class Pretrained(NamedTuple):
    """A backbone with weights.

    Args:
        backbone: the backbone, on the CPU and in training mode.
        spec: the meaning of its pixels, and their normalization.
        size: side in pixels of the images that it was trained on; 0 if unknown.
        line: reports what was loaded.
    """

    backbone: Backbone
    spec: PixelSpec
    size: int
    line: str


def pretrained_backbone(
    weights: str | Path, backbone: str | nn.Module | None = None, images: PixelSpec | None = None
) -> Pretrained:
    """The backbone of any weights: what ``--weights`` and ``--backbone`` of a verb mean.

    Args:
        weights: as for :func:`~densepath.nets.weights.load_weights`: "random", a file, a run folder, a timm name,
            "hf-hub:OWNER/NAME" or the folder of such a model.
        backbone: its name, or a network as for :func:`choose_backbone`, which is copied and keeps its own weights where
            ``weights`` is "random"; default: that of the weights.
        images: the specification of the images; None if they are read as the weights, or a network, need them.

    Raises:
        UserError: there are no such weights, they do not fit, or their backbone is not known.
    """
    if images is None and isinstance(backbone, nn.Module):
        images = _taken_by(backbone)
    spec = pixels_of_weights(weights, images)
    given = backbone_of_weights(weights) if backbone is None else backbone
    made = choose_backbone(copy.deepcopy(given), spec.channels)
    line = load_weights(made, weights)
    if isinstance(backbone, nn.Module) and str(weights) == "random":
        line = f"{made.name} with the weights that it has"
    return Pretrained(made, spec, size_of_weights(weights), line)


def _taken_by(network: nn.Module) -> PixelSpec | None:
    """The pixels of the images that a network takes, by its first convolution; None if it has none."""
    if isinstance(network, Backbone):
        return PixelSpec.default(network.in_channels, ndim=network.ndim)
    stem = next((layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.Conv3d)), None)
    return None if stem is None else PixelSpec.default(stem.in_channels, ndim=len(stem.kernel_size))


def backbone_of_weights(weights: str | Path, prefix: str = "") -> str:
    """The name of the backbone that weights belong to; resnet18 for random ones.

    Args:
        weights: as for :func:`pretrained_backbone`.
        prefix: the beginning of the names of its tensors, in a file with several networks.

    Raises:
        UserError: there are no such weights, or they do not show it.
    """
    name = str(weights)
    if name == "random":
        return DEFAULT_BACKBONE
    found: str | None = None
    state: Mapping[str, Tensor] = {}
    if is_published(weights):
        found = read_published(weights).backbone
    elif is_on_disk(weights):
        state, metadata = read_weights(weights)
        own = {key.removeprefix(prefix): value for key, value in to_timm(state).items() if key.startswith(prefix)}
        recorded = recorded_backbone(metadata, weights_file(weights))
        if recorded is not None and not (is_hub_name(recorded) or is_named(recorded)):
            raise UserError(
                f"{name} has the weights of {recorded!r}, a network that cannot be built from its name; {GIVE_NETWORK}"
            )
        found = recorded or guess_backbone(own, metadata.get("arch"))
    else:
        import timm

        if timm.models.is_model_pretrained(name):
            return name.split(".")[0]
        return DEFAULT_BACKBONE  # load_weights reports what is wrong
    if found is None:
        fitting = "timm's (densepath has none for windowed transformers)"
        if any(value.ndim == 5 for value in state.values()):
            fitting = "those for volumes, such as resnet18_3d"
        raise UserError(
            f"the tensors of {name} do not show which backbone they belong to; name it with --backbone, if it is one "
            f"of {fitting}"
        )
    return found


def size_of_weights(weights: str | Path) -> int:
    """The side in pixels of the images that published weights were trained on; 0 if unknown."""
    if is_published(weights):
        folder = published_folder(weights, weights=False)
        return preprocessing(weights, folder, configuration_of(folder))[2]
    import timm

    if not is_on_disk(weights) and timm.models.is_model_pretrained(str(weights)):
        config = timm.get_pretrained_cfg(str(weights))
        return int(config.input_size[-1]) if config is not None else 0
    return 0


def guess_backbone(state: Mapping[str, Tensor], recorded: str | None = None) -> str | None:
    """The name of the backbone whose tensors a file holds, from their names and shapes.

    Args:
        state: the tensors: a ResNet under any names that ``match_names`` knows, a vision transformer under timm's, or
            a U-Net under those of Models Genesis.
        recorded: the name in the file, of a network that neither is.
    """
    if found := guess_transformer(state):
        return found
    if unet := name_unet3d(state):
        return unet
    names = {f"layer{stage}.{i}.{layer}.weight" for stage in range(1, 5) for i in range(36) for layer in _LAYERS}
    match = match_names(state, names | {"conv1.weight"}).found
    blocks = [len({key.split(".")[1] for key in match if key.startswith(f"layer{stage}.")}) for stage in range(1, 5)]
    resnet = _RESNETS.get((tuple(blocks), "layer1.0.conv3.weight" in match))  # type: ignore[arg-type]
    if resnet and "conv1.weight" in match and match["conv1.weight"].ndim == 4:
        shape = tuple(match["layer1.0.conv2.weight"].shape[:2]) if "layer1.0.conv2.weight" in match else _PLAIN
        if found := resnet if shape == _PLAIN else _VARIANTS.get((resnet, shape)):
            return found
    import timm

    return recorded if recorded and timm.is_model(recorded) else None
