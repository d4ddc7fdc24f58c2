"""Teachers: frozen pretrained networks whose patch features are targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densepath.core.errors import UserError, counted
from densepath.core.keywords import is_on_disk
from densepath.core.losses import full_precision
from densepath.nets.backbones import build_backbone
from densepath.nets.backbones.names import create_network, without_tag
from densepath.nets.backbones.transformers import check_grid, is_transformer, resize_positions, wrap_transformer
from densepath.nets.weights import read_weights
from densepath.nets.weights.checks import require_numbers
from densepath.nets.weights.hub import HUB, is_hub_name, quiet
from densepath.nets.weights.layouts import match_names
from densepath.nets.weights.model_folders import load_transformers_model, read_config
from densepath.nets.weights.pixels import pixels_of_weights
from densepath.nets.weights.published import preprocessing, published_folder, read_published
from densepath.nets.weights.transformer_names import to_timm
from densepath.sources.pixel_source import PixelSpec

ACCEPTED = (
    f"a timm name (vit_base_patch16_clip_224.openai), a folder with a model of timm or transformers, or {HUB}OWNER/NAME"
)
_RGB = PixelSpec()
_COLORS = 3  # channels of the images that a teacher is shown
_TRIAL = 5  # patches along a side of the trial image


class Teacher(nn.Module):
    """Patch features of a network, on the student's grid.

    Views have the student's size and the default normalization of RGB images, or that of :meth:`show`. They are
    converted to the network's normalization, grey views to three equal channels, and resized (bicubic, antialiased) to
    ``grid`` times its stride. Its patches then cover the same parts of the view as the student's, for any two strides:
    with a student of 16 px patches and a teacher of 14 px patches, a view of 224 px becomes one of 196 px, at 7/8 of
    the magnification. Class and register tokens are dropped.

    Args:
        network: images (B, 3, H, W) -> feature map (B, channels, H / stride, W / stride).
        name: name of the network.
        stride: stride of the map in pixels.
        channels: channels of the features.
        mean, std: the normalization of its training, for colors in [0, 1].

    Attributes:
        width: ``channels``.

    Raises:
        UserError: it does not return such a map for images of other sizes than its own.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        network: nn.Module,
        name: str,
        stride: int,
        channels: int,
        mean: Sequence[float] = _RGB.mean,
        std: Sequence[float] = _RGB.std,
    ) -> None:
        super().__init__()
        self.network = network
        self.name, self.stride, self.width = name, stride, channels
        self.mean, self.std = tuple(mean), tuple(std)
        for name_of, value in zip(("scale", "shift"), self._conversion_from(_RGB), strict=True):
            self.register_buffer(name_of, value)
        _check_map(network.eval(), name, stride, channels)

    def show(self, spec: PixelSpec) -> None:
        """Set the normalization of the views.

        Raises:
            UserError: the images are neither grey nor RGB.
        """
        if spec.ndim != 2 or spec.channels not in (1, 3):
            raise UserError(f"the teacher {self.name} sees grey or RGB images, not {counted(spec.channels, 'channel')}")
        self.scale, self.shift = (value.to(self.scale) for value in self._conversion_from(spec))

    def _conversion_from(self, spec: PixelSpec) -> tuple[Tensor, Tensor]:
        """The factor and the offset (3, 1, 1) that convert a normalization to the network's."""
        ours = torch.tensor((spec.mean, spec.std)).view(2, -1, 1, 1)
        theirs = torch.tensor((self.mean, self.std)).view(2, 3, 1, 1)
        return (ours[1] / theirs[1]), (ours[0] - theirs[0]) / theirs[1]

    @torch.no_grad()
    def forward(self, pixels: Tensor, grid: int) -> Tensor:
        """Features of each patch.

        Args:
            pixels: (B, C, S, S) views.
            grid: the student's patches along a side.

        Returns:
            (B, grid * grid, channels), row by row, in float32 (float64 for float64).
        """
        x = pixels * self.scale + self.shift
        if x.shape[-1] != grid * self.stride:
            x = F.interpolate(x, (grid * self.stride,) * 2, mode="bicubic", antialias=True, align_corners=False)
        return full_precision(self.network(x)).flatten(2).transpose(1, 2)

    def describe(self) -> str:
        """A line for the user."""
        return f"the teacher {self.name}: {self.width} features of each patch of {self.stride} px"


def build_teacher(name: str, weights: str = "") -> Teacher:
    """A teacher by its name.

    Args:
        name: a timm network (with a tag for its weights: "vit_small_patch14_dinov2.lvd142m"); a folder with the
            config.json and weights of a timm or a transformers vision model; or "hf-hub:OWNER/NAME" for such a folder
            on the Hugging Face hub, downloaded if it is not in its cache.
        weights: for a timm network, a file or a run folder as for ``read_weights``, or "random"; by default timm's
            weights of that name.

    Raises:
        UserError: there is no such network, its weights are missing or do not fit, or it does not return a map of its
            patches.
    """
    if is_hub_name(name):
        return _from_folder(published_folder(name), name, weights)
    if is_on_disk(name) and Path(name).is_dir():
        return _from_folder(Path(name), name, weights)
    import timm

    if not timm.is_model(name.split(".")[0]):
        raise UserError(f"there is no teacher {name!r}; give {ACCEPTED}")
    pretrained = not weights
    if pretrained and not timm.models.is_model_pretrained(name):
        raise UserError(f"timm has no weights of that name for the teacher {name!r}; give them with --teacher_weights")
    network = _timm_network(name if pretrained else name.split(".")[0], pretrained)
    mean, std = network.net.pretrained_cfg["mean"], network.net.pretrained_cfg["std"]
    if weights and weights != "random":
        _load(network.net, to_timm(read_weights(weights).state_dict), name, weights)
        spec = pixels_of_weights(weights, PixelSpec(mean=tuple(mean), std=tuple(std)))
        mean, std = spec.mean, spec.std
    return Teacher(network, name, network.stride, network.channels, mean, std)


class _TimmNetwork(nn.Module):
    """The deepest map of a timm network; for a transformer, the patch tokens after the last block and its norm."""

    def __init__(self, net: Any, stride: int, channels: int) -> None:
        super().__init__()
        self.net, self.stride, self.channels = net, stride, channels

    def forward(self, x: Tensor) -> Tensor:
        maps: Sequence[Tensor] = self.net(x)
        return maps[-1]


def _timm_network(name: str, pretrained: bool) -> _TimmNetwork:
    """A network of timm with patches of any size, with or without pretrained weights."""
    transformer = is_transformer(name)
    if not transformer:
        build_backbone(without_tag(name))  # checks that it returns maps at any size
    kind = {"num_classes": 0, "dynamic_img_size": True} if transformer else {"features_only": True}
    try:
        with quiet():
            model: Any = create_network(name, pretrained=pretrained, **kind)
    except Exception as error:  # each failure of the download or the constructor raises another exception
        why = "could not be fetched; check the network, or give a file with --teacher_weights"
        raise UserError(
            f"the teacher {name} {why if pretrained else 'cannot be built'} ({type(error).__name__})"
        ) from error
    if not transformer:
        return _TimmNetwork(model, model.feature_info.reduction()[-1], model.feature_info.channels()[-1])
    return _TimmNetwork(wrap_transformer(model), model.patch_embed.patch_size[0], model.num_features)


def _from_folder(folder: Path, name: str, weights: str) -> Teacher:
    if weights:
        raise UserError(f"the teacher {name} comes with its weights; leave out --teacher_weights")
    config = read_config(folder)
    if "architecture" not in config:
        model = load_transformers_model(folder, config)
        mean, std, _ = preprocessing(name, folder, config)
        spec = _normalization(mean, std, PixelSpec.mean, PixelSpec.std)
        return Teacher(model, name, model.stride, model.channels, *spec)
    published = read_published(folder)
    network = _timm_network(str(published.backbone), False)
    check_grid(network.net, published.sides, name)
    _load(network.net, published.state, name, folder)
    own = network.net.pretrained_cfg
    spec = _normalization(published.mean, published.std, own["mean"], own["std"])
    return Teacher(network, name, network.stride, network.channels, *spec)


def _normalization(
    mean: Sequence[float], std: Sequence[float], usual_mean: Sequence[float], usual_std: Sequence[float]
) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and std as found in a folder, or the usual ones if it does not contain three of each."""
    return (mean, std) if len(mean) == len(std) == _COLORS else (usual_mean, usual_std)


def _load(net: nn.Module, state: Mapping[str, Tensor], name: str, source: str | Path) -> None:
    """Load all tensors of a teacher, or fail."""
    match = match_names(state, net.state_dict())
    require_numbers(match.found, source, net.state_dict())
    found = resize_positions(net, match.found)
    own = {key: value for key, value in net.state_dict().items() if not key.endswith("num_batches_tracked")}
    missing = [key for key, value in own.items() if key not in found or found[key].shape != value.shape]
    parts = {key.removeprefix("model.").split(".")[0] for key in own}
    foreign = [key for key in match.others if key.split(".")[0] in parts]
    if missing or foreign:
        why = f"it lacks {missing[0]} in that shape" if missing else f"it also holds {foreign[0]}"
        raise UserError(f"{source} does not fit the teacher {name}: {why}; name the network that the weights belong to")
    net.load_state_dict(found, strict=False)


@torch.no_grad()
def _check_map(network: nn.Module, name: str, stride: int, channels: int) -> None:
    try:
        shape = tuple(network(torch.zeros(1, 3, stride * _TRIAL, stride * _TRIAL)).shape)
    except Exception as error:  # each network raises other exceptions
        raise UserError(
            f"the teacher {name} does not take images of {stride * _TRIAL} px ({type(error).__name__}); "
            "choose one that takes images of any size"
        ) from error
    if shape != (1, channels, _TRIAL, _TRIAL):
        raise UserError(f"the teacher {name} returns {shape} instead of a map of patches; choose another one")
