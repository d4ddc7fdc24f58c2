"""Windows at places that all images share: the classes of Semantic Genesis."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from densepath.core.affine import from_box
from densepath.views.crops import Pattern
from densepath.views.random_streams import Draw, Stream

_PLACES = 0xFFFD  # a view number that no view has
_SCALED = 2 / 3  # share of windows of another size
_SCALE = (50 / 64, 80 / 64)
_SHIFT = 10 / 64  # of their side
_LARGEST = 4  # sides of a whole image, relative to those of its view


def pattern_numbers(count: int, draw: Draw) -> Tensor:
    """The place (N,) int64 from 0 to ``count - 1`` that each row of a view shows."""
    return (draw(Stream.PATTERN)[:, 0] * count).long()


def pattern_maps(pattern: Pattern, sizes: Tensor, size: Sequence[int], draw: Draw) -> Tensor:
    """The maps (N, d, d + 1) of windows at one of the places; before the first epoch of windows, of whole images.

    Images more than four times as large as the view along an axis show a part of this size, as whole CTs would fill the
    memory: anywhere, or the middle for features that are compared between images.

    A place is a point of the room that a window has in an image. A third of the windows are as large as the view; the
    others are resized and shifted along x and y, as in the released code.

    Args:
        pattern: the number of places.
        sizes: (N, d) int64, the sizes of the images in pixels, in the order of the tensor's axes.
        size: size of the views in pixels, in the same order.
        draw: the random numbers of the N rows.
    """
    d = len(size)
    images = sizes.flip(-1).double()
    if draw.epoch < pattern.whole_epochs:
        shown = (_LARGEST * torch.tensor(list(reversed(size))) / images).clamp(max=1)
        place = 0.5 if pattern.middle else draw(Stream.PATTERN_PLACE)[:, :d].double()
        center = (1 - shown) * (2 * place - 1)
        return from_box(center - shown, center + shown).float()
    side = torch.minimum(torch.tensor([float(n) for n in reversed(size)]).double(), images)
    places = Draw(draw.seed, 0, torch.arange(pattern.count), torch.full((pattern.count,), _PLACES))
    place = places(Stream.PATTERN_PLACE)[pattern_numbers(pattern.count, draw), :d].double()
    center = side / 2 + place * (images - side)
    _, scaled, scale, to_right = draw(Stream.PATTERN).double().unbind(1)
    in_plane = (torch.arange(d) < 2) & (scaled < _SCALED).unsqueeze(1)
    shift = torch.stack((to_right, draw(Stream.PATTERN_PLACE)[:, 0].double()), dim=1) * 2 - 1
    shift = torch.cat((shift, torch.zeros(len(sizes), d - 2, dtype=torch.float64)), dim=1)
    center = torch.where(in_plane, center + _SHIFT * shift * side, center)
    factor = (_SCALE[0] + (_SCALE[1] - _SCALE[0]) * scale).unsqueeze(1)
    side = torch.minimum(torch.where(in_plane, factor * side, side), images)
    low = torch.minimum((center - side / 2).clamp(min=0), images - side)
    return from_box(2 * low / images - 1, 2 * (low + side) / images - 1).float()
