"""Backbones: timm networks that give their stages f1..f5, where stage f_i has stride 2**i."""

from __future__ import annotations

from difflib import get_close_matches
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from densepath.core.errors import UserError
from densepath.nets.transformers import build_transformer, is_transformer

_STAGE_OF_STRIDE = {2**stage: stage for stage in range(1, 6)}
TRIAL_SIZE = 64  # pixels: every stage then has more than one cell


class Backbone(nn.Module):
    """A network that returns the feature maps of its stages; a ConvNet can stop early.

    A vision transformer has one stage: f4 for patches of 16 px, f3 for 8, f5 for 32. Its map holds the patch tokens
    behind the last block and the final norm, without class and register tokens.

    The state dict is that of ``timm.create_model(name, features_only=True)`` with ``net.`` before each key; a vision
    transformer's has its final norm, too.

    Args:
        net: a timm network made with ``features_only=True``, or a vision transformer by ``build_transformer``.
        name: its timm name.

    Attributes:
        name: the timm name.
        channels: stage -> number of channels.
        stages: the stages that exist, ascending: (1, 2, 3, 4, 5) for a ResNet, (2, 3, 4, 5) for a ConvNeXt.
        deepest: the last of them.
        patch_size: pixels, whose multiples the sides of images are; 1 for a ConvNet.
    """

    def __init__(self, net: nn.Module, name: str) -> None:
        super().__init__()
        self.net: Any = net
        self.name = name
        info: Any = net.feature_info
        self._strides: tuple[int, ...] = tuple(info.reduction())  # of timm's feature maps, ascending
        self._positions: tuple[int, ...] = tuple(info.out_indices)
        self.channels: dict[int, int] = {
            _STAGE_OF_STRIDE[stride]: channels
            for stride, channels in zip(self._strides, info.channels(), strict=True)
            if stride in _STAGE_OF_STRIDE
        }
        self.stages: tuple[int, ...] = tuple(self.channels)
        self.deepest: int = self.stages[-1]
        self.patch_size: int = self._strides[-1] if is_transformer(name) else 1

    def forward(self, x: Tensor, last: int = 5) -> dict[int, Tensor]:
        """Compute the stages up to ``last`` and nothing behind it.

        The few timm families with an extractor of their own (EfficientNet, MobileNet-v2 and -v3, HRNet, Xception,
        NASNet) compute everything, whatever ``last`` is.

        Args:
            x: (B, 3, H, W) normalised images; H and W are multiples of ``patch_size``.
            last: the deepest stage that is wanted; one beyond the deepest that exists means all.

        Returns:
            Stage i -> f_i, (B, channels[i], H / 2**i, W / 2**i). A ResNet's f1 is taken before its max-pool.

        Raises:
            UserError: the network has no stage ``last``, or its patches do not divide the images.
        """
        last = min(last, self.deepest)
        self.check_stage(last)
        self.check_size(x.shape[2], x.shape[3])
        count = self._strides.index(2**last) + 1
        if self._in_order:
            maps = self._run_modules(x, count)
        elif hasattr(self.net, "model") and hasattr(self.net.model, "forward_intermediates"):
            maps = self.net.model.forward_intermediates(
                x, indices=list(self._positions[:count]), norm=self.net.norm, stop_early=True, intermediates_only=True
            )
        else:
            maps = self.net(x)[:count]
        stages = (_STAGE_OF_STRIDE.get(stride) for stride in self._strides)
        return {stage: feature for stage, feature in zip(stages, maps, strict=False) if stage}

    def _run_modules(self, x: Any, count: int) -> list[Tensor]:
        """Run timm's modules, which stand in the order of their use, until ``count`` feature maps are there."""
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
        """Whether the network's modules stand in the order of their use."""
        from timm.models import FeatureListNet

        return type(self.net) is FeatureListNet

    def last_stage(self) -> tuple[nn.Module, ...]:
        """The modules that, one after the other, make the deepest map of the one before it, or of any parts of that.

        Raises:
            UserError: the network is of a timm family that computes its stages in one piece.
        """
        if not self._in_order:
            raise UserError(f"{self.name} cannot run its last stage alone; take a ResNet, ConvNeXt or RegNet")
        before = list(self.net.return_layers)[-2]
        return tuple(self.net.values())[list(self.net).index(before) + 1 :]

    def stem_and_stages(self, pooled: bool = False) -> tuple[tuple[nn.Module, ...], ...]:
        """The stem's modules, which make a first map of the images, and those that make each stage of the map before.

        Where there is no f1, the stem is what comes before the last module of f2.

        Args:
            pooled: whether the max-pool behind f1, as a ResNet has it, belongs to the stem.

        Returns:
            One tuple of modules for the stem, and one for each stage from f2 on.

        Raises:
            UserError: the network is of a timm family that computes its stages in one piece, or a transformer; or it
                has no such max-pool where one is asked for.
        """
        if not self._in_order:
            raise UserError(
                f"{self.name} is no ConvNet that can be taken apart behind its stem; take a ResNet, ConvNeXt or RegNet"
            )
        names = list(self.net)
        end_of = {}  # stage -> how many modules lead to it
        for name, stride in zip(self.net.return_layers, self._strides, strict=True):
            if stride in _STAGE_OF_STRIDE:
                end_of[_STAGE_OF_STRIDE[stride]] = names.index(name) + 1
        later = [end for stage, end in end_of.items() if stage > 1]
        modules = tuple(self.net.values())
        stem = end_of.get(1, later[0] - 1)
        if pooled:
            if 1 not in end_of or not any(isinstance(module, nn.MaxPool2d) for module in modules[stem].modules()):
                raise UserError(
                    f"{self.name} has no max-pool behind its stem, so that it cannot end after one; take a ResNet, or "
                    "leave out --method.stem after_pool"
                )
            stem += 1
        ends = [0, stem, *later]
        return tuple(modules[start:end] for start, end in pairwise(ends))

    def check_stage(self, stage: int) -> None:
        """Check that f_stage exists.

        Raises:
            UserError: it does not; the message names those that do.
        """
        if stage not in self.channels:
            have = ", ".join(f"f{i}" for i in self.stages)
            raise UserError(f"{self.name} has no stage f{stage}; choose one of {have}")

    def check_size(self, height: int, width: int) -> None:
        """Check that images of a size, in pixels, can be divided into patches.

        Raises:
            UserError: they cannot.
        """
        if height % self.patch_size or width % self.patch_size:
            raise UserError(
                f"{self.name} divides images into patches of {self.patch_size} px, and {width} x {height} px is no "
                f"multiple of that; take a size that is one, e.g. {max(1, height // self.patch_size) * self.patch_size}"
            )


def build_backbone(name: str = "resnet18") -> Backbone:
    """Make a backbone with random weights.

    ResNets are initialised as in the paper: convolutions Kaiming-normal over the fan-in with the gain of a ReLU, norms
    with weight 1 and bias 0, those at the end of a residual branch included. Other networks keep timm's own
    initialisation, which belongs to their architecture.

    Args:
        name: a timm architecture, e.g. "resnet18", "convnext_atto", "vit_small_patch16_224". What counts is that its
            feature maps have the strides that it declares at any input size; transformers with windows don't.

    Raises:
        UserError: the name is unknown, or the network gives no feature maps of strides 2 to 32.

    Source: ConCL (ECCV 2022), released code, ``backbones/resnet.py``.
    """
    from timm.models import model_entrypoint

    _check_name(name)
    try:
        backbone = Backbone(make_network(name), name)
        _check_maps(backbone)
    except UserError:
        raise
    except Exception as error:  # each family of timm fails in its own way
        raise UserError(
            f"{name} is no network that gives feature maps of strides 2 to 32 for images of any size; "
            "choose another backbone, e.g. resnet18"
        ) from error
    if model_entrypoint(name).__module__ == "timm.models.resnet":
        backbone.apply(_init_resnet_layer)
    return backbone


def make_network(name: str, pretrained: bool = False) -> nn.Module:
    """timm's network that a :class:`Backbone` wraps; with ``pretrained`` its name may be that of weights."""
    import timm

    if is_transformer(name):
        return build_transformer(name, pretrained)
    network: nn.Module = timm.create_model(name, pretrained=pretrained, features_only=True)
    return network


def _check_name(name: str) -> None:
    import timm

    if timm.is_model(name) and "." not in name:
        return
    architecture = name.split(".")[0]
    if timm.is_model(architecture):
        raise UserError(
            f"{name!r} names weights, not a network; use the backbone {architecture!r} and give {name!r} as the weights"
        )
    close = get_close_matches(name, timm.list_models(), n=3)
    advice = f"did you mean {', '.join(close)}?" if close else "timm.list_models() names those that exist"
    raise UserError(f"unknown backbone {name!r}; {advice}")


@torch.no_grad()
def _check_maps(backbone: Backbone) -> None:
    """Raise ValueError where a stage is not, at a size that timm did not foresee, what its metadata says."""
    training = backbone.training
    maps = backbone.eval()(torch.zeros(1, 3, TRIAL_SIZE, TRIAL_SIZE))
    backbone.train(training)
    side = {stage: TRIAL_SIZE // 2**stage for stage in backbone.stages}
    expected = {stage: (1, backbone.channels[stage], side[stage], side[stage]) for stage in backbone.stages}
    if {stage: tuple(feature.shape) for stage, feature in maps.items()} != expected:
        raise ValueError(f"{backbone.name} does not give one map of each stride")


def _init_resnet_layer(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
        # timm zeroes the last norm of each residual branch, as ImageNet training does; the paper's code does not.
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)
