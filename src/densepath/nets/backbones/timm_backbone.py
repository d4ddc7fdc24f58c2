"""The backbones by name: timm's networks, and densepath's own for volumes."""

from __future__ import annotations

from difflib import get_close_matches
from itertools import pairwise
from math import log2
from typing import Any

from torch import Tensor, nn

from densepath.core.errors import UserError, errors_as
from densepath.core.records import UNLIKE
from densepath.nets.backbones.backbone import Backbone
from densepath.nets.backbones.listed import NAMES_LISTED, build_resenc
from densepath.nets.backbones.names import check_arguments, create_network, parse_name, why_not_built
from densepath.nets.backbones.resnet3d import NAMES_3D, build_resnet3d, is_for_volumes
from densepath.nets.backbones.transformers import build_transformer, is_transformer
from densepath.nets.backbones.trial import check_maps
from densepath.nets.backbones.unet3d import NAMES_UNET, build_unet3d

__all__ = ["Backbone", "TimmBackbone", "build_backbone", "is_named", "make_network"]

_STAGE_OF_STRIDE = {2**stage: stage for stage in range(1, 6)}


class EqualStrides(ValueError):
    """Two maps of a network have the same stride."""


class TimmBackbone(Backbone):
    """A network of timm for images; a ConvNet can stop early.

    A vision transformer has one stage: f4 for patches of 16 or 14 px, f3 for 8, f5 for 32, f1 for 1. Its stride is the
    size of the patches; its map is the patch tokens after the last block and the final norm, without class and register
    tokens.

    The state dict is that of ``timm.create_model(name, features_only=True)`` with ``net.`` before each key; that of a
    vision transformer includes the final norm.

    Args:
        net: a timm network made with ``features_only=True``, or a vision transformer by ``build_transformer``.
        name: its timm name, with arguments if it differs from timm's architecture (see ``names.py``).
        in_channels: channels of the images.

    Raises:
        EqualStrides: two of its maps have the same stride.
    """

    library = "timm"

    def __init__(self, net: nn.Module, name: str, in_channels: int = 3) -> None:
        info: Any = net.feature_info
        reductions: tuple[int, ...] = tuple(info.reduction())
        patch = reductions[-1] if is_transformer(name) else 0
        stage_of = {patch: max(1, round(log2(patch)))} if patch else _STAGE_OF_STRIDE
        # Of timm's feature maps, ascending; those without a stage are None.
        stages = tuple(stage_of.get(reduction) for reduction in reductions)
        of_stage = {stage: i for i, stage in enumerate(stages) if stage}
        if len(of_stage) < len([stage for stage in stages if stage]):
            raise EqualStrides("two of its maps have the same stride")
        channels = {stage: info.channels()[i] for stage, i in of_stage.items()}
        strides = {stage: (reductions[i],) * 2 for stage, i in of_stage.items()}
        super().__init__(net, name, channels, strides, in_channels, patch or 1)
        self._maps = stages
        self._positions: tuple[int, ...] = tuple(info.out_indices)

    def forward(self, x: Tensor, last: int = 5) -> dict[int, Tensor]:
        """As for any :class:`Backbone`: f_i has the stride 2**i, and a ResNet's f1 is taken before its max-pool.

        The few timm families with their own feature extractor (EfficientNet, MobileNet-v2 and -v3, HRNet, Xception,
        NASNet) compute all stages for any ``last``.
        """
        last = min(last, self.deepest)
        self.check_stage(last)
        self.check_size(*x.shape[2:])
        count = self._maps.index(last) + 1
        if self._in_order:
            maps = self._run_modules(x, count)
        elif hasattr(self.net, "model") and hasattr(self.net.model, "forward_intermediates"):
            maps = self.net.model.forward_intermediates(
                x, indices=list(self._positions[:count]), norm=self.net.norm, stop_early=True, intermediates_only=True
            )
        else:
            maps = self.net(x)[:count]
        return {stage: feature for stage, feature in zip(self._maps, maps, strict=False) if stage}

    def _run_modules(self, x: Any, count: int) -> list[Tensor]:
        """Run timm's modules in order until there are ``count`` feature maps."""
        maps: list[Tensor] = []
        for name, module in self.net.items():
            x = module(x)
            if name in self.net.return_layers:
                maps.append(x[0] if isinstance(x, tuple | list) else x)
                if len(maps) == count:
                    break
        return maps

    @property
    def _in_order(self) -> bool:
        """Whether the network's modules are in the order of the forward pass."""
        from timm.models import FeatureListNet

        return type(self.net) is FeatureListNet

    def last_stage(self) -> tuple[nn.Module, ...]:
        if not self._in_order:
            return super().last_stage()
        before = list(self.net.return_layers)[-2]
        return tuple(self.net.values())[list(self.net).index(before) + 1 :]

    def stem_and_stages(self, pooled: bool = False) -> tuple[tuple[nn.Module, ...], ...]:
        if not self._in_order:
            return super().stem_and_stages(pooled)
        names = list(self.net)
        end_of = {}  # stage -> number of modules up to it
        for name, stage in zip(self.net.return_layers, self._maps, strict=True):
            if stage:
                end_of[stage] = names.index(name) + 1
        later = [end for stage, end in end_of.items() if stage > 1]
        modules = tuple(self.net.values())
        stem = end_of.get(1, later[0] - 1)
        if pooled:
            if 1 not in end_of or not any(isinstance(module, nn.MaxPool2d) for module in modules[stem].modules()):
                raise UserError(
                    f"{self.name} has no max-pool after its stem; use a ResNet, or leave out --method.stem after_pool"
                )
            stem += 1
        ends = [0, stem, *later]
        return tuple(modules[start:end] for start, end in pairwise(ends))


def build_backbone(name: str = "resnet18", channels: int = 3) -> Backbone:
    """Build a backbone with random weights.

    ResNets are initialized as in the paper: convolutions Kaiming-normal over the fan-in with the gain of a ReLU, norms
    with weight 1 and bias 0, including those at the end of a residual branch. Other networks keep timm's
    initialization, which is part of their architecture.

    Args:
        name: a timm architecture, e.g. "resnet18", "convnext_atto", "vit_small_patch16_224". Its feature
            maps must have the declared strides at any input size; those of windowed transformers do not. It may have
            arguments: "vit_large_patch16_224(init_values=1e-05)", see ``names.py``. For volumes:
            see :func:`~densepath.nets.backbones.resnet3d.build_resnet3d` and
            :func:`~densepath.nets.backbones.unet3d.build_unet3d`.
        channels: channels of the images.

    Raises:
        UserError: the name or one of its arguments is unknown, or the network does not return feature maps of strides 2
            to 32.

    Source: ConCL (ECCV 2022), released code, ``backbones/resnet.py``.
    """
    from timm.models import model_entrypoint

    if is_for_volumes(name):
        build = {"unet": build_unet3d, "rese": build_resenc}.get(name[:4], build_resnet3d)
        return build(name, channels)
    _check_name(name)
    with errors_as(lambda error: UserError(why_not_built(name, error) if parse_name(name)[1] else _no_maps(name))):
        network = make_network(name, channels=channels)
    with errors_as(lambda _: UserError(_no_maps(name))):
        backbone = TimmBackbone(network, name, channels)
        check_maps(backbone)
    if model_entrypoint(parse_name(name)[0]).__module__ == "timm.models.resnet":
        backbone.apply(_init_resnet_layer)
    return backbone


def is_named(name: str) -> bool:
    """Whether :func:`build_backbone` knows a name."""
    if name.endswith(UNLIKE):
        return False
    if is_for_volumes(name):
        return name.startswith((*NAMES_3D, *NAMES_UNET, *NAMES_LISTED))
    try:
        _check_name(name)
    except UserError:
        return False
    return True


def make_network(name: str, pretrained: bool = False, channels: int = 3) -> nn.Module:
    """timm's network that a :class:`Backbone` wraps; with ``pretrained``, the name may be that of weights."""
    if is_transformer(name):
        return build_transformer(name, pretrained, channels)
    network: nn.Module = create_network(name, pretrained=pretrained, features_only=True, in_chans=channels)
    return network


def _no_maps(name: str) -> str:
    return (
        f"{name} does not return feature maps of strides 2 to 32 for images of any size; "
        "choose another backbone, e.g. resnet18"
    )


def _check_name(name: str) -> None:
    import timm

    given, _ = parse_name(name)
    architecture = given.split(".")[0]
    if timm.is_model(given) and given == architecture:
        check_arguments(name)
        return
    if timm.is_model(architecture):
        raise UserError(
            f"{name!r} names weights, not a network; use the backbone {architecture!r} and give {name!r} as the weights"
        )
    close = get_close_matches(name, [*timm.list_models(), *NAMES_3D, *NAMES_UNET, *NAMES_LISTED], n=3)
    advice = f"did you mean {', '.join(close)}?" if close else "timm.list_models() names those that exist"
    raise UserError(f"unknown backbone {name!r}; {advice}")


def _init_resnet_layer(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
        # timm zeroes the last norm of each residual branch, as ImageNet training does; the paper's code does not.
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)
