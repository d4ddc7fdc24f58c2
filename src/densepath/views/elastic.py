"""Elastic deformation of views, and the choice of one operation: the corruptions of Semantic Genesis."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from densepath.core.errors import UserError
from densepath.views.appearance import Appearance, change, check_probability, chosen
from densepath.views.corruptions import Corruption
from densepath.views.intensity import gaussian_blur
from densepath.views.random_streams import Draw, Stream


@dataclass(frozen=True)
class Elastic(Corruption):
    """A smooth random displacement of pixels along x and y; in volumes it also varies along z.

    Uniform noise in [-1, 1], blurred with zeros around the view, is scaled to a standard deviation. What comes from
    outside of the view is mirrored.

    Args:
        probability: of a deformation.
        displacement: standard deviation of the displacement along each axis, as a share of the view's width. Near the
            borders it is smaller: by a factor of about 0.7 at a face, 0.5 at an edge and 0.35 at a corner.
        sigma: standard deviation of the blur, as a share of the view's width.

    Source: Simard et al., ICDAR 2003; the released Semantic Genesis has alpha 991 and sigma 8 for volumes 64 wide,
    which is a displacement of 3.8.
    """

    probability: float = 1.0
    displacement: float = 3.8 / 64
    sigma: float = 8 / 64

    def __post_init__(self) -> None:
        check_probability("the probability of an elastic deformation", self.probability)
        if not (0 <= self.displacement <= 1 and 0 < self.sigma <= 1):
            raise UserError(
                f"an elastic deformation needs shares of the view, not {self.displacement} and {self.sigma}"
            )

    def apply(self, x: Tensor, draw: Draw) -> Tensor:
        size = x.shape[2:]

        def deform(part: Tensor, rows: list[int]) -> Tensor:
            shift = displacements(draw, rows, size, self.displacement, self.sigma, part.device)  # (n, 2, *size)
            # In coordinates whose unit is half a side; none along z.
            ends = torch.tensor([2 / size[-1], 2 / size[-2]]).to(part.device, non_blocking=True)
            grid = F.affine_grid(torch.eye(len(size), len(size) + 1, device=part.device)[None], [1, 1, *size], False)
            grid = grid.repeat(len(part), *[1] * (grid.ndim - 1))
            grid[..., :2] += shift.movedim(1, -1) * ends
            return F.grid_sample(part, grid, padding_mode="reflection", align_corners=False)

        change(x, chosen(draw, Stream.ELASTIC, self.probability), deform)
        return x


def displacements(
    draw: Draw, rows: list[int], size: tuple[int, ...], displacement: float, sigma: float, device: torch.device
) -> Tensor:
    """The displacements (n, 2, *size) of pixels along x and y, in pixels, for some rows of the random numbers."""
    width, d = size[-1], len(size)
    noise = draw.pixels(rows, 2 * math.prod(size), device, Stream.ELASTIC_PIXELS).view(len(rows), 2, *size) * 2 - 1
    blurred = gaussian_blur(noise, torch.full((len(rows),), sigma * width), zeros=True)
    # Noise of deviation 3**-0.5 has (4 pi sigma**2)**(-d / 4) of it after the blur, far from the edges.
    deviation = 3**-0.5 * (4 * math.pi * (sigma * width) ** 2) ** (-d / 4)
    return blurred * (displacement * width / deviation)


@dataclass(frozen=True)
class OneOf(Corruption):
    """Exactly one of several operations, with equal probability."""

    operations: tuple[Appearance, ...]

    def apply(self, x: Tensor, draw: Draw) -> Tensor:
        which = (draw(Stream.ONE_OF)[:, 0] * len(self.operations)).long()
        for number, operation in enumerate(self.operations):
            rows = (which == number).nonzero().flatten()
            if len(rows):
                on_device = rows.to(x.device, non_blocking=True)
                x[on_device] = operation.apply(x[on_device], draw.take(rows))
        return x
