"""Dilation of a backbone's last stage: the same weights give a finer map."""

from __future__ import annotations

import copy

import torch
from torch import nn

from densepath.core.errors import UserError, shortage
from densepath.core.records import UNLIKE
from densepath.nets.backbones.backbone import Backbone
from densepath.nets.backbones.names import create_network
from densepath.nets.backbones.trial import TRIAL_SIZE, check_maps, same_maps, trial_maps

DILATED, _PLAIN = (16, 16), (32, 32)  # strides of f5
OF_ANY_MODULE = vars(nn.Module()).keys()  # names of attributes
_SETTINGS = (int, float, str, tuple, list, type(None))  # types of the attributes of a module that are settings


def dilate_last_stage(backbone: Backbone) -> None:
    """Remove the stride of stage 5 and dilate its later convolutions instead: f5 gets the stride 16 of f4.

    Every second position of the new f5, along both axes, equals the old f5, except in networks with
    squeeze-and-excitation. Weights and their names do not change. Detectron2 also dilates the convolution that had the
    stride, so that pre-trained weights give other features, and supports only ResNet-50 and deeper.

    Args:
        backbone: modified in place; its modules get the settings that those of timm's dilated network have.

    Raises:
        UserError: timm cannot dilate the network, or it differs from timm's so that it cannot be dilated like that.
    """
    if backbone.deepest == 5 and backbone.strides[5] == DILATED:
        return
    try:
        if backbone.deepest != 5 or backbone.strides[5] != _PLAIN:
            raise ValueError("it has no f5 of stride 32")
        channels = backbone.in_channels
        with torch.random.fork_rng(devices=[]):  # what is initialized next gets the same weights as without it
            plain, dilated = (
                create_network(backbone.architecture, features_only=True, in_chans=channels, **stride)
                for stride in ({}, {"output_stride": 16})
            )
        trial = copy.deepcopy(backbone)
        _dilate(trial, plain, dilated)
        _check(trial, backbone)
    except Exception as error:  # each model family of timm raises its own errors
        if shortage(error):
            raise
        raise UserError(f"the last stage of {backbone.name} cannot be dilated; use a ResNet or RegNet") from error
    _dilate(backbone, plain, dilated)


def is_dilated(backbone: Backbone) -> bool:
    """Whether f5 is as fine as f4, whatever its stride is said to be."""
    return backbone.deepest == 5 and trial_maps(backbone)[5].shape[-1] == TRIAL_SIZE // DILATED[0]


def _dilate(backbone: Backbone, plain: nn.Module, dilated: nn.Module) -> None:
    """Give each module the settings in which timm's plain and dilated networks differ."""
    own, others = dict(backbone.net.named_modules()), dict(dilated.named_modules())
    for name, module in plain.named_modules():
        mine, other = own.get(name), others.get(name)
        if mine is None or other is None:
            continue
        if type(other) is not type(module) and type(mine) is type(module):
            mine.__class__ = type(other)
        before = vars(module)
        for key, value in vars(other).items():
            new = isinstance(value, _SETTINGS) and (key not in before or before[key] != value)
            if new and key not in OF_ANY_MODULE:
                setattr(mine, key, value)
    backbone.strides[5] = DILATED


def _check(dilated: Backbone, plain: Backbone) -> None:
    """Raise ValueError if a network is not dilated, or, where it is not timm's own, computes something else."""
    check_maps(dilated)
    if plain.name.endswith(UNLIKE):
        maps = trial_maps(dilated)
        if not same_maps({**maps, 5: maps[5][..., ::2, ::2]}, trial_maps(plain)):
            raise ValueError("its maps change")
