"""First layers for images of other channels than those that weights were trained on."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from densepath.nets.backbones import Backbone
from densepath.nets.weights.layouts import match_names


def adapt_channels(found: Mapping[str, Tensor], own: Mapping[str, Tensor], channels: int) -> dict[str, Tensor]:
    """Adapt the first convolution of a checkpoint to images with another number of channels.

    For grey images its filters are summed over the channels: the network then gives the result for three equal
    channels. In the other direction they are repeated and divided by the number of channels, which is the inverse.

    Args:
        found: the checkpoint's tensors, under the network's names.
        own: the network's tensors.
        channels: channels of the network's images.
    """
    adapted = dict(found)
    for key, value in found.items():
        shape = own[key].shape
        if _has_other_channels(value, shape, channels):
            if channels == 1:
                adapted[key] = value.sum(1, keepdim=True)
            elif value.shape[1] == 1:
                adapted[key] = value.expand(shape) / channels
    return adapted


def channels_of_tensors(state: Mapping[str, Tensor], backbone: Backbone) -> int:
    """The channels of the images of weights, from the first layer; those of the backbone if they are equal or unknown.

    Args:
        state: tensors, under any names that ``match_names`` knows.
        backbone: the backbone that they belong to, for images of any channels.
    """
    return channels_of_found(match_names(state, backbone.net.state_dict()).found, backbone)


def channels_of_found(found: Mapping[str, Tensor], backbone: Backbone) -> int:
    """As :func:`channels_of_tensors`, for tensors under the names of the backbone."""
    own, channels = backbone.net.state_dict(), backbone.in_channels
    others = (value for key, value in found.items() if _has_other_channels(value, own[key].shape, channels))
    return next((value.shape[1] for value in others), channels)


def _has_other_channels(value: Tensor, shape: torch.Size, channels: int) -> bool:
    """Whether a tensor is a first convolution for images of other channels than these, but otherwise of this shape."""
    other = value.ndim == len(shape) > 2 and value.shape[1] != channels == shape[1]
    return other and value.shape[:1] + value.shape[2:] == shape[:1] + shape[2:]
