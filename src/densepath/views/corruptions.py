"""Operations that a network learns to undo: remapped intensities, painted and cut-out blocks."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from densepath.core.errors import UserError
from densepath.views.appearance import Appearance, change, check_probability, chosen, per_image
from densepath.views.random_streams import Draw, Stream

_TABLE = 1024  # entries of a remapping
_CURVE = 4096  # points of a Bezier curve
_BLOCKS = 5
_ANOTHER = 0.95  # probability of another block
_MARGIN = 3  # pixels between blocks and borders
_IMAGENET = (0.485, 0.456, 0.406)


class Corruption(Appearance):
    """An operation that a method adds to its views; ``--augment`` does not describe it."""


@dataclass(frozen=True)
class Bezier(Corruption):
    """Intensities remapped by a cubic Bezier curve between the corners, through two random control points.

    Half of the curves rise from (0, 0) to (1, 1); the others fall, and invert the contrast.

    Args:
        probability: of a remapping.

    Source: Zhou et al., Models Genesis, MICCAI 2019; the released code.
    """

    probability: float = 0.9

    def __post_init__(self) -> None:
        check_probability("the probability of a Bezier remapping", self.probability)

    def apply(self, x: Tensor, draw: Draw) -> Tensor:
        def remap(part: Tensor, rows: list[int]) -> Tensor:
            falling = draw(Stream.BEZIER)[rows, 1] < 0.5
            table = bezier_tables(draw(Stream.BEZIER_POINTS)[rows], falling).to(part.device, non_blocking=True)
            position = part.clamp(0, 1) * (_TABLE - 1)
            low = position.floor().clamp_(max=_TABLE - 2)
            index = low.long().flatten(1)
            first, second = table.gather(1, index), table.gather(1, index + 1)
            return torch.lerp(first, second, (position - low).flatten(1)).view_as(part)

        change(x, chosen(draw, Stream.BEZIER, self.probability), remap)
        return x


def bezier_tables(points: Tensor, falling: Tensor) -> Tensor:
    """Values of Bezier curves from corner to corner at equally spaced intensities, (N, 1024).

    Args:
        points: (N, 4) x and y of the first control point and of the second, in [0, 1].
        falling: (N,) bool: the curves whose values are taken in the opposite order.
    """
    t = torch.linspace(0, 1, _CURVE, dtype=torch.float64)
    first, second = 3 * (1 - t).square() * t, 3 * (1 - t) * t.square()
    x, y = (points[:, i, None] * first + points[:, i + 2, None] * second + t**3 for i in (0, 1))
    y = torch.where(falling.unsqueeze(1), y.flip(1), y)
    grid = torch.linspace(0, 1, _TABLE, dtype=torch.float64).expand(len(points), -1)
    right = torch.searchsorted(x.contiguous(), grid.contiguous()).clamp_(1, _CURVE - 1)
    x0, x1, y0, y1 = (values.gather(1, index) for values in (x, y) for index in (right - 1, right))
    share = ((grid - x0) / (x1 - x0).clamp(min=1e-12)).clamp(0, 1)
    return torch.lerp(y0, y1, share).float()


@dataclass(frozen=True)
class Painting(Corruption):
    """Noise inside of up to five random blocks ("in-painting"), or outside of them ("out-painting").

    The noise is uniform in [0, 1], the same in all channels. Blocks may overlap.

    Args:
        probability: of either.
        inside: probability that it is the inside.
        blocks: the largest number of blocks; after each there is another one with probability 0.95.
        same_choice: whether all views of an image are painted in the same of the two ways, or none of them is.

    Source: Zhou et al., Models Genesis, MICCAI 2019; the sizes of the released code: sides of 1/6 to 1/3 of the view
    inside, and of 3/7 to 4/7 outside, at least 3 px from its borders.
    """

    probability: float = 0.9
    inside: float = 0.2
    blocks: int = _BLOCKS
    same_choice: bool = False

    def __post_init__(self) -> None:
        check_probability("the probability of painting", self.probability)
        check_probability("the probability of in-painting", self.inside)
        if not 1 <= self.blocks <= _BLOCKS:
            raise UserError(f"painting has 1 to {_BLOCKS} blocks, not {self.blocks}")

    def apply(self, x: Tensor, draw: Draw) -> Tensor:
        size = torch.tensor(x.shape[2:])
        shared = Draw(draw.seed, draw.epoch, draw.index, torch.zeros_like(draw.view)) if self.same_choice else draw

        def paint(part: Tensor, rows: list[int]) -> Tensor:
            inside = shared(Stream.PAINTING)[rows, 1] < self.inside
            blocks = painted_blocks(draw, rows, size, inside, self.blocks)
            low, high = (corner.to(part.device, non_blocking=True) for corner in blocks)
            covered = in_boxes(low, high, part.shape[2:]).unsqueeze(1)
            noise = draw.pixels(rows, math.prod(part.shape[2:]), part.device, Stream.PAINTED_PIXELS)
            noisy = covered == per_image(inside, part).to(part.device, non_blocking=True)
            return torch.where(noisy, noise.view(len(part), 1, *part.shape[2:]), part)

        change(x, chosen(shared, Stream.PAINTING, self.probability), paint)
        return x


def painted_blocks(draw: Draw, rows: list[int], size: Tensor, inside: Tensor, blocks: int) -> tuple[Tensor, Tensor]:
    """The blocks of :class:`Painting`: low corners (included) and high ones, (n, blocks, d); empty if there are fewer.

    Args:
        draw: the random numbers.
        rows: n rows of them.
        size: (d,) of the views in pixels.
        inside: (n,) bool: in-painting.
        blocks: the largest number of blocks.
    """
    d = len(size)
    streams = [(draw(Stream.PAINTING_BLOCKS + 2 * k), draw(Stream.PAINTING_BLOCKS + 2 * k + 1)) for k in range(blocks)]
    sides = torch.stack([first[rows, :d] for first, _ in streams], dim=1)
    places = torch.stack([second[rows, :d] for _, second in streams], dim=1)
    # The fourth number of each block decides on it. Out-painting always has one.
    more = torch.stack([first[rows, 3] < _ANOTHER for first, _ in streams], dim=1)
    more[:, 0] |= ~inside
    present = more.long().cumprod(1).bool().unsqueeze(-1)
    least, most = size // 6, size // 3
    small = least + (sides * (most - least + 1)).long()
    least, most = 3 * size // 7, 4 * size // 7
    large = size - least - (sides * (most - least + 1)).long()
    side = torch.where(inside.view(-1, 1, 1), small, large).clamp(min=1)
    margin = torch.minimum(torch.tensor(_MARGIN), (size - side) // 2)
    low = margin + (places * (size - side - 2 * margin + 1)).long()
    return low, torch.where(present, low + side, low)


def in_boxes(low: Tensor, high: Tensor, size: tuple[int, ...]) -> Tensor:
    """(N, *size) bool: the pixels in any of the boxes from ``low`` to ``high`` (excluded), each (N, K, d)."""
    if low.device.type == "cpu":
        covered = torch.zeros(len(low), *size, dtype=torch.bool)
        for row, *box in zip(covered, low.clamp(min=0).tolist(), high.tolist(), strict=True):
            for start, stop in zip(*box, strict=True):
                row[tuple(slice(a, max(a, b)) for a, b in zip(start, stop, strict=True))] = True
        return covered
    inside: Tensor | None = None
    for axis, n in enumerate(size):
        at = torch.arange(n, device=low.device)
        along = (at >= low[..., axis, None]) & (at < high[..., axis, None])  # (N, K, n)
        along = along.view(*along.shape[:2], *(n if a == axis else 1 for a in range(len(size))))
        inside = along if inside is None else inside & along
    assert inside is not None
    return inside.any(1)


@dataclass(frozen=True)
class Cutout(Corruption):
    """Square holes at uniform centers, cut at the borders; in volumes, boxes of the view's aspect ratio.

    Args:
        holes: their number.
        size: their side as a share of the shortest side of an image's view: 32 / 224 in C2L. In volumes a hole covers
            the same share of the view, size squared.
        fill: the value of each channel in a hole; one for all is the mean. The default becomes 0 where images are
            normalized as ImageNet's.

    Source: DeVries and Taylor, arXiv 1708.04552; as in the released C2L.
    """

    holes: int = 3
    size: float = 32 / 224
    fill: tuple[float, ...] = _IMAGENET

    def __post_init__(self) -> None:
        if self.holes < 1 or not 0 < self.size <= 1:
            raise UserError(f"cut-out needs holes of a share of the view, not {self.holes} of {self.size}")

    def apply(self, x: Tensor, draw: Draw) -> Tensor:
        size = torch.tensor(x.shape[2:])
        if len(size) == 2:
            side = torch.tensor(max(1, round(self.size * int(size.min()))))
        else:
            side = (self.size ** (2 / 3) * size).round().long().clamp(min=1)
        numbers = torch.stack([draw(Stream.CUTOUT + hole)[:, : len(size)] for hole in range(self.holes)], dim=1)
        low = (numbers * size).long() - side // 2
        low, high = (corner.to(x.device, non_blocking=True) for corner in (low, low + side))
        covered = in_boxes(low, high, x.shape[2:]).unsqueeze(1)
        values = self.fill if len(self.fill) == x.shape[1] else (sum(self.fill) / len(self.fill),) * x.shape[1]
        fill = torch.tensor(values, dtype=x.dtype).to(x.device, non_blocking=True)
        return x.copy_(torch.where(covered, fill.view(-1, *[1] * len(size)), x))
