"""Operations on the squares or cubes into which a view is divided: of Cube++ and of contrastive predictive coding."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from densepath.core.errors import UserError
from densepath.views.corruptions import Corruption
from densepath.views.random_streams import Draw, Stream


@dataclass(frozen=True)
class ShuffledCubes(Corruption):
    """The cubes of a view change places at random, and each is rotated by quarter turns.

    Args:
        side: of a cube in pixels; views are multiples of it.
        permute: whether they change places.
        rotation: "xy": by 0 to 3 quarter turns in the xy-plane; "all": by one of the 10 rotations that are quarter
            turns about one axis; "none".
    """

    side: int = 16
    permute: bool = True
    rotation: Literal["none", "xy", "all"] = "xy"

    def __post_init__(self) -> None:
        if self.rotation not in ("none", "xy", "all"):
            raise UserError(f"unknown rotation {self.rotation!r} of cubes; there are: none, xy, all")

    def apply(self, x: Tensor, draw: Draw) -> Tensor:
        cubes = divide(x, self.side)  # (N, C, K, side**d)
        numbers = _numbers(draw, cubes.shape[2], 2)
        places, turns = numbers.unbind(-1)
        if self.permute:
            order = places.argsort(dim=1).to(x.device, non_blocking=True)[:, None, :, None]
            cubes = cubes.gather(2, order.expand_as(cubes))
        table = rotations(self.side, x.ndim - 2, self.rotation)
        source = table[(turns * len(table)).long()].to(x.device, non_blocking=True).unsqueeze(1)  # (N, 1, K, side**d)
        return x.copy_(join(cubes.gather(3, source.expand_as(cubes)), x.shape[2:], self.side))


@dataclass(frozen=True)
class PatchJitter(Corruption):
    """Each cube of a view is flipped along the first axis or not, cropped at random, and padded with zeros again.

    Args:
        side: of a cube in pixels; views are multiples of it.
        share: side of the crop relative to the cube's.

    Source: the 3D-CPC of Taleb et al., NeurIPS 2020, as released.
    """

    side: int = 32
    share: float = 7 / 8

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise UserError(f"the crop of a patch is a share of it, above 0 and up to 1, not {self.share}")

    def apply(self, x: Tensor, draw: Draw) -> Tensor:
        d, side = x.ndim - 2, self.side
        kept = max(1, round(self.share * side))
        before = (side - kept) // 2
        cubes = divide(x, side)
        numbers = _numbers(draw, cubes.shape[2], d + 1)  # (N, K, d + 1)
        at = torch.arange(side)
        for axis in range(d):
            low = (numbers[..., axis, None] * (side - kept + 1)).long()
            source = low + (at - before)  # (N, K, side), read in this order
            if axis == 0:
                source = torch.where(numbers[..., d, None] < 0.5, side - 1 - source, source)
            inside = ((at >= before) & (at < before + kept)).expand_as(source)
            shape = (*source.shape[:2], *(side if a == axis else 1 for a in range(d)))
            source, inside = (
                each.reshape(shape).unsqueeze(1).to(x.device, non_blocking=True)
                for each in (source.clamp(0, side - 1), inside)
            )
            parts = cubes.unflatten(3, (side,) * d)
            parts = parts.gather(3 + axis, source.expand_as(parts)) * inside
            cubes = parts.flatten(3)
        return x.copy_(join(cubes, x.shape[2:], side))


def divide(x: Tensor, side: int) -> Tensor:
    """The cubes (N, C, K, side**d) of views (N, C, *size), in the order of the tensor's axes."""
    d = x.ndim - 2
    for axis in reversed(range(d)):
        x = x.unflatten(2 + axis, (x.shape[2 + axis] // side, side))
    order = [0, 1, *(2 + 2 * axis for axis in range(d)), *(3 + 2 * axis for axis in range(d))]
    return x.permute(order).flatten(2, 1 + d).flatten(3)


def join(cubes: Tensor, size: Sequence[int], side: int) -> Tensor:
    """The views (N, C, *size) of cubes (N, C, K, side**d): the inverse of :func:`divide`."""
    d = len(size)
    x = cubes.unflatten(3, (side,) * d).unflatten(2, [n // side for n in size])
    order = [0, 1, *(place for axis in range(d) for place in (2 + axis, 2 + d + axis))]
    return x.permute(order).reshape(*cubes.shape[:2], *size)


def rotations(side: int, d: int, kind: str) -> Tensor:
    """(R, side**d) int64: for each of the rotations of a cube, the pixel from which each pixel is taken."""
    cube = torch.arange(side**d).view((side,) * d)
    planes = {"none": (), "xy": ((d - 2, d - 1),), "all": tuple((a, b) for a in range(d) for b in range(a + 1, d))}
    made = [cube, *(torch.rot90(cube, k, plane) for plane in planes[kind] for k in (1, 2, 3))]
    return torch.stack([each.flatten() for each in made])


def check_cubes(name: str, size: Sequence[int], side: int) -> None:
    """Raise UserError if a view of a size cannot be divided into several cubes."""
    if side < 1 or any(n % side for n in size) or math.prod(size) == side ** len(size):
        raise UserError(
            f"views of {' x '.join(map(str, size))} cannot be divided into several {name} with sides of {side}; choose "
            f"sizes that are multiples of it, or --method.side"
        )


def _numbers(draw: Draw, cubes: int, count: int) -> Tensor:
    """(N, K, count) uniform numbers, on the CPU."""
    rows = list(range(len(draw)))
    return draw.pixels(rows, cubes * count, torch.device("cpu"), Stream.CUBES).view(len(rows), cubes, count)
