"""Where random views lie in their images."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from densepath.core.affine import compose
from densepath.views.crops import Crop, Pose
from densepath.views.random_streams import Draw, Stream

_ATTEMPTS = 10  # torchvision's RandomResizedCrop
_ROUNDING = 1e-5  # of the sides of views that touch the border of their image


def crop_maps(crop: Crop, sizes: Tensor, size: Sequence[int], draw: Draw, spacing: Tensor | None = None) -> Tensor:
    """The maps of random resized crops, flipped and rotated.

    Args:
        crop: the ranges and probabilities.
        sizes: (N, d) int64, the sizes of the images in pixels, in the order of the tensor's axes.
        size: size of the views in pixels, in the same order.
        draw: the random numbers of the N rows.
        spacing: (N, d) the distance of neighboring pixels along each axis; None for equal ones.

    Returns:
        (N, d, d + 1) float32, from view to image. The views lie inside their images.
    """
    across = sizes.flip(-1).to(torch.float32)  # x first, like the maps
    shape = torch.tensor([float(n) for n in reversed(size)])
    sides, low = (_random_rectangle if len(size) == 2 else _random_cuboid)(crop, across, shape, draw)
    maps = torch.cat((torch.diag_embed(sides / across), ((2 * low + sides) / across - 1).unsqueeze(-1)), dim=-1)
    return pose_maps(crop, maps, sizes, draw, spacing)


def window_maps(sizes: Tensor, size: Sequence[int], draw: Draw) -> Tensor:
    """The maps (N, d, d + 1) of boxes as large as the views, at whole pixels; arguments as for :func:`crop_maps`."""
    across = sizes.flip(-1).to(torch.float32)
    sides = torch.tensor([float(n) for n in reversed(size)]).expand_as(across)
    low = (draw(Stream.CROP)[:, : len(size)] * (across - sides + 1).clamp(min=1)).floor()
    return torch.cat((torch.diag_embed(sides / across), ((2 * low + sides) / across - 1).unsqueeze(-1)), dim=-1)


def center_maps(share: float, sizes: Tensor, size: Sequence[int]) -> Tensor:
    """The maps (N, d, d + 1) of central boxes with the aspect ratio of the views.

    Args:
        share: share of the largest such box that they cover, along each axis.
        sizes: (N, d) int64, the sizes of the images in pixels, in the order of the tensor's axes.
        size: size of the views in pixels, in the same order.
    """
    across = sizes.flip(-1).to(torch.float32)
    shape = torch.tensor([n / max(size) for n in reversed(size)])
    spread = share * (across / shape).amin(1, keepdim=True) * shape / across
    return torch.cat((torch.diag_embed(spread), torch.zeros(*spread.shape, 1)), dim=-1)


def pose_maps(pose: Pose, maps: Tensor, sizes: Tensor, draw: Draw, spacing: Tensor | None = None) -> Tensor:
    """The maps of boxes, randomly flipped and rotated. Arguments as for :func:`crop_maps`."""
    d = maps.shape[1]
    first, second, turn, angle = draw(Stream.FLIP).unbind(1)
    numbers, angles = [first, second], [angle]
    if d == 3:
        third, about_x, about_y, _ = draw(Stream.TURN_3D).unbind(1)
        numbers, angles = [first, second, third], [angle, about_x, about_y]
    maps = flip_maps(maps, pose.flip, torch.stack(numbers, dim=-1))
    if pose.rotation:
        half = sizes.flip(-1).to(torch.float32)
        if spacing is not None:
            half = half * spacing.flip(-1).to(torch.float32)
        count = len(angles) if pose.rotation_axes == "all" else 1
        turns = [(2 * number - 1) * math.radians(pose.rotation) for number in angles[:count]]
        maps = _rotate(maps, turns, half)
    if pose.quarter_turns:
        maps = compose(maps, quarter_turns((turn * 4).long(), d))
    return maps


def flip_maps(maps: Tensor, probabilities: Sequence[float], numbers: Tensor) -> Tensor:
    """Flip the views of maps (N, d, d + 1) along axes, x first, whose numbers (N, d) are below the probabilities."""
    d = maps.shape[1]
    limits = torch.tensor([*probabilities, *[0.0] * d][:d])
    signs = torch.where(numbers < limits, -1.0, 1.0)
    return torch.cat((maps[..., :-1] * signs.unsqueeze(-2), maps[..., -1:]), dim=-1)


def quarter_turns(turns: Tensor, d: int) -> Tensor:
    """Maps (N, d, d + 1) that rotate views in their xy-plane by (N,) int64 quarter turns, exactly."""
    cos, sin = torch.tensor((1.0, 0.0, -1.0, 0.0))[turns], torch.tensor((0.0, 1.0, 0.0, -1.0))[turns]
    maps = torch.eye(d, d + 1).repeat(len(turns), 1, 1)
    maps[:, :2, :2] = torch.stack((cos, -sin, sin, cos), dim=-1).view(-1, 2, 2)
    return maps


def _random_rectangle(crop: Crop, across: Tensor, shape: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
    """Sides and low corners (N, 2), in pixels, of the first of ten random rectangles that fits, else a central one."""
    width, height = across.unbind(1)
    view_ratio = float(shape[0] / shape[1])
    low, high = crop.scale
    log_low, log_high = math.log(crop.ratio[0]), math.log(crop.ratio[1])
    # torchvision's fallback: the largest central rectangle of an allowed aspect ratio.
    ratio = (width / height).clamp(crop.ratio[0] * view_ratio, crop.ratio[1] * view_ratio)
    crop_width, crop_height = torch.minimum(width, height * ratio), torch.minimum(height, width / ratio)
    left, top = (width - crop_width) / 2, (height - crop_height) / 2
    found = torch.zeros_like(width, dtype=torch.bool)
    for attempt in range(_ATTEMPTS):
        area, aspect, to_right, down = draw(Stream.CROP + attempt).unbind(1)
        area = (low + (high - low) * area) * height * width
        aspect = torch.exp(log_low + (log_high - log_low) * aspect) * view_ratio
        w, h = torch.sqrt(area * aspect), torch.sqrt(area / aspect)
        take = ~found & (w <= width) & (h <= height)
        crop_width, crop_height = torch.where(take, w, crop_width), torch.where(take, h, crop_height)
        left, top = torch.where(take, to_right * (width - w), left), torch.where(take, down * (height - h), top)
        found |= take
        if bool(found.all()):
            break
    return torch.stack((crop_width, crop_height), dim=-1), torch.stack((left, top), dim=-1)


def _random_cuboid(crop: Crop, across: Tensor, shape: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
    """Sides and low corners (N, 3), in pixels, of the first of ten random cuboids that fits, else a central one."""
    stretch = math.log(max(crop.ratio[1], 1 / crop.ratio[0])) / 2
    sides = shape * (across / shape).amin(1, keepdim=True)
    corner = (across - sides) / 2
    found = torch.zeros(len(across), 1, dtype=torch.bool)
    for attempt in range(_ATTEMPTS):
        numbers = torch.cat((draw(Stream.CROP + attempt), draw(Stream.CROP_3D + attempt)), dim=1)
        volume = (crop.scale[0] + (crop.scale[1] - crop.scale[0]) * numbers[:, :1]) * across.prod(1, keepdim=True)
        stretches = stretch * (2 * numbers[:, 1:4] - 1)
        stretches = stretches - stretches.mean(1, keepdim=True)  # they change the shape, not the volume
        tried = (volume / shape.prod()) ** (1 / 3) * shape * torch.exp(stretches)
        take = ~found & (tried <= across).all(1, keepdim=True)
        sides = torch.where(take, tried, sides)
        corner = torch.where(take, numbers[:, 4:7] * (across - tried), corner)
        found |= take
        if bool(found.all()):
            break
    return sides, corner


def _rotate(maps: Tensor, angles: Sequence[Tensor], half: Tensor) -> Tensor:
    """Rotate views about their centers; shrink those that would leave their images.

    Along an axis where a view already leaves its image, as windows larger than it do, it reaches as far as before.

    Args:
        maps: (N, d, d + 1).
        angles: (N,) each, in radians: in the xy-plane, and about the x and the y axis.
        half: (N, d) sizes of the images, x first, in a unit that is the same along all axes.
    """
    linear, center = maps[..., :-1], maps[..., -1]
    reach, inside = linear.abs().sum(-1), 1 - center.abs()
    for angle, (first, second) in zip(angles, ((0, 1), (1, 2), (2, 0)), strict=False):
        cos, sin = torch.cos(angle), torch.sin(angle)
        aspect = half[:, second] / half[:, first]
        # A rotation of pixels, in coordinates whose units differ along the axes.
        rotation = torch.eye(maps.shape[1]).repeat(len(maps), 1, 1)
        rotation[:, first, first], rotation[:, first, second] = cos, -sin * aspect
        rotation[:, second, first], rotation[:, second, second] = sin / aspect, cos
        linear = rotation @ linear
    room = torch.where(reach > inside + _ROUNDING, reach, inside) / linear.abs().sum(-1)
    linear = linear * room.amin(-1).clamp(max=1).view(-1, 1, 1)
    return torch.cat((linear, center.unsqueeze(-1)), dim=-1)
