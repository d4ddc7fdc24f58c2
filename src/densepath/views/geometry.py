"""Where random views lie in their images."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from densepath.core.affine import compose
from densepath.views.augment import Augment
from densepath.views.random_streams import Slot

Draw = Callable[[int], Tensor]

_ATTEMPTS = 10  # torchvision's RandomResizedCrop


def random_maps(augment: Augment, sizes: Tensor, draw: Draw) -> Tensor:
    """The maps of random resized crops, flipped and rotated.

    Args:
        augment: the ranges and probabilities.
        sizes: (B, 2) int64, height and width of the images in pixels.
        draw: slot -> (B, 4) uniform numbers.

    Returns:
        (B, 2, 3) float32, from view to image. The views lie inside their images.
    """
    height, width = sizes.to(torch.float32).unbind(1)
    crop_width, crop_height, left, top = _random_crop(augment, height, width, draw)
    spread = torch.stack((crop_width / width, crop_height / height), dim=-1)
    center = torch.stack(((2 * left + crop_width) / width, (2 * top + crop_height) / height), dim=-1) - 1
    flips = torch.tensor((augment.flip, augment.vertical_flip))
    first, second, turn, angle = draw(Slot.FLIP).unbind(1)
    spread = torch.where(torch.stack((first, second), dim=-1) < flips, -spread, spread)
    maps = torch.cat((torch.diag_embed(spread), center.unsqueeze(-1)), dim=-1)
    if augment.rotation:
        maps = _rotate(maps, (2 * angle - 1) * math.radians(augment.rotation), height, width)
    if augment.quarter_turns:
        maps = compose(maps, _quarter_turns((turn * 4).long()))
    return maps


def center_maps(share: float, sizes: Tensor) -> Tensor:
    """The maps (B, 2, 3) of central squares.

    Args:
        share: of the shorter side that they cover.
        sizes: (B, 2) int64, height and width of the images in pixels.
    """
    across = sizes.flip(1).to(torch.float32)  # x first
    spread = share * across.amin(1, keepdim=True) / across
    return torch.cat((torch.diag_embed(spread), torch.zeros(len(sizes), 2, 1)), dim=-1)


def _random_crop(augment: Augment, height: Tensor, width: Tensor, draw: Draw) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Width, height, left and top in pixels of the first of ten random rectangles that fits, else a central one."""
    low, high = augment.scale
    log_low, log_high = math.log(augment.ratio[0]), math.log(augment.ratio[1])
    # What torchvision falls back to: the largest central rectangle of an allowed aspect ratio.
    ratio = (width / height).clamp(*augment.ratio)
    crop_width, crop_height = torch.minimum(width, height * ratio), torch.minimum(height, width / ratio)
    left, top = (width - crop_width) / 2, (height - crop_height) / 2
    found = torch.zeros_like(width, dtype=torch.bool)
    for attempt in range(_ATTEMPTS):
        area, aspect, across, down = draw(Slot.CROP + attempt).unbind(1)
        area = (low + (high - low) * area) * height * width
        aspect = torch.exp(log_low + (log_high - log_low) * aspect)
        w, h = torch.sqrt(area * aspect), torch.sqrt(area / aspect)
        take = ~found & (w <= width) & (h <= height)
        crop_width, crop_height = torch.where(take, w, crop_width), torch.where(take, h, crop_height)
        left, top = torch.where(take, across * (width - w), left), torch.where(take, down * (height - h), top)
        found |= take
        if bool(found.all()):
            break
    return crop_width, crop_height, left, top


def _rotate(maps: Tensor, angle: Tensor, height: Tensor, width: Tensor) -> Tensor:
    """Rotate crops about their centers by angles in radians; shrink those that would leave their images."""
    cos, sin = torch.cos(angle), torch.sin(angle)
    aspect = height / width
    # A rotation of pixels, in coordinates whose units differ along x and y.
    rotation = torch.stack((cos, -sin * aspect, sin / aspect, cos), dim=-1).view(-1, 2, 2)
    linear, center = rotation @ maps[..., :-1], maps[..., -1]
    room = (1 - center.abs()) / linear.abs().sum(-1)
    linear = linear * room.amin(-1).clamp(max=1).view(-1, 1, 1)
    return torch.cat((linear, center.unsqueeze(-1)), dim=-1)


def _quarter_turns(turns: Tensor) -> Tensor:
    """Maps (B, 2, 3) that turn the square of a view by whole quarters, exactly."""
    cos, sin = torch.tensor((1.0, 0.0, -1.0, 0.0))[turns], torch.tensor((0.0, 1.0, 0.0, -1.0))[turns]
    linear = torch.stack((cos, -sin, sin, cos), dim=-1).view(-1, 2, 2)
    return torch.cat((linear, linear.new_zeros(len(turns), 2, 1)), dim=-1)
