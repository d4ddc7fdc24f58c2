"""Exact flips and quarter turns of one view: drawn, recovered from maps, and applied to pixels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from densepath.core.affine import between, compose, identity
from densepath.views.geometry import flip_maps, quarter_turns
from densepath.views.random_streams import Draw, Stream

_TOLERANCE = 1e-3  # for rounding errors of exact maps


def turn_maps(flip: Sequence[float], turn: bool, draw: Draw, d: int) -> Tensor:
    """Random maps (N, d, d + 1) from a turned view to the view itself: flipped, then rotated by quarter turns.

    Args:
        flip: probability of a flip along x, y and z.
        turn: whether to rotate by 0 to 3 quarter turns in the xy-plane, with equal probability.
        draw: the random numbers of the N rows.
        d: spatial dimensions.
    """
    numbers = draw(Stream.FLIP)
    flips = torch.cat((numbers[:, :2], draw(Stream.TURN_3D)[:, : d - 2]), dim=1)
    maps = flip_maps(identity(len(draw), d), flip, flips)
    return compose(maps, quarter_turns((numbers[:, 2] * 4).long(), d)) if turn else maps


def indicator(maps_from: Tensor, maps_to: Tensor) -> Tensor:
    """How the *to* views are flipped and rotated relative to the *from* views, from their maps.

    Different flips and turns can give the same map; each map has one indicator: a rotation is quarter turns without
    flips along x and y, a reflection is one flip, along x or y, followed by at most one quarter turn.

    Args:
        maps_from, maps_to: (N, d, d + 1) maps to common sources.

    Returns:
        (N, d + 4) float32: whether it is flipped along x, y (and z), then the one-hot number of quarter turns in
        the xy-plane, as by ``torch.rot90`` after ``flip``.

    Raises:
        ValueError: a map is not a flip or quarter turn.
    """
    relative = between(maps_from, maps_to).detach().cpu()
    d = relative.shape[1]
    linear = relative[..., :-1]
    exact = linear.round()
    plane = exact[:, :2, :2]
    if (
        (relative - torch.cat((exact, torch.zeros_like(relative[..., -1:])), -1)).abs().max() > _TOLERANCE
        or not bool((exact.abs().sum(-1) == 1).all())
        or not bool((exact.abs().sum(-2) == 1).all())
        or not bool((exact[:, 2:, 2:].abs().sum((-1, -2)) == d - 2).all())
    ):
        raise ValueError("the maps are not flips and quarter turns of each other")
    swapped = plane[:, 0, 0] == 0
    rotation = torch.linalg.det(plane) > 0
    along_x = torch.where(swapped, plane[:, 0, 1] > 0, plane[:, 0, 0] < 0) & ~rotation
    along_y = torch.where(swapped, plane[:, 1, 0] < 0, plane[:, 1, 1] < 0) & ~rotation
    # The first column of a rotation by 0, 1, 2 and 3 quarters is (1, 0), (0, 1), (-1, 0) and (0, -1).
    quarters = torch.where(swapped, 2 - plane[:, 1, 0], 1 - plane[:, 0, 0]).long()
    quarters = torch.where(rotation, quarters, swapped.long())
    along_z = (exact[:, 2:, 2:] < 0).any(-1)
    flips = torch.cat((along_x.unsqueeze(1), along_y.unsqueeze(1), along_z), dim=1)
    return torch.cat((flips, torch.nn.functional.one_hot(quarters, 4)), dim=1).float()


def turned(x: Tensor, turns: Tensor) -> Tensor:
    """A copy of pixels (N, C, *spatial), flipped and rotated by the linear parts (N, d, d) of :func:`turn_maps`."""
    out = torch.empty_like(x)
    if x.device.type == "cpu" and x.dtype == torch.float32:  # each in one copy
        for row, own in zip(range(len(x)), turns, strict=True):
            order, backwards = _turn(x.ndim - 1, own)
            image = x[row].numpy().transpose(order)
            out[row].numpy()[...] = image[
                tuple(slice(None, None, -1 if axis in backwards else 1) for axis in range(image.ndim))
            ]
        return out
    kinds, kind_of = torch.unique(turns.flatten(1), dim=0, return_inverse=True)
    for number, kind in enumerate(kinds):
        rows = (kind_of == number).nonzero().flatten().to(x.device, non_blocking=True)
        order, backwards = _turn(x.ndim - 1, kind.view(turns.shape[1:]))
        out[rows] = x[rows].permute(0, *(1 + axis for axis in order)).flip([1 + axis for axis in backwards])
    return out


def _turn(ndim: int, linear: Tensor) -> tuple[list[int], list[int]]:
    """The order of the axes (C, *spatial) of turned pixels, and which of these are reversed.

    ``linear`` (d, d) takes output coordinates to input coordinates, x first.
    """
    order, backwards = list(range(ndim)), []
    for row, signs in enumerate(linear.tolist()):
        column = max(range(len(signs)), key=lambda each: abs(signs[each]))
        order[ndim - 1 - column] = ndim - 1 - row
        if signs[column] < 0:
            backwards.append(ndim - 1 - column)
    return order, backwards
