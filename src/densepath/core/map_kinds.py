"""Which maps can be sampled along axes, and how finely the others must be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from densepath.core.filters import Mode

# Sampled this densely, a rotated label map's area shares are accurate to about 1/64.
_SUBSAMPLES = 8
# By rounding, a map without minification may seem to have a little.
_STEP_TOLERANCE = 1e-3
# Off-axis entries of a quarter turn: the computed cosine of pi/2 is 6e-17 to 4e-8. A share of the largest entry.
_AXIS_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Aligned:
    """Maps whose axes run along axes of the input: ``axes[i]`` is the output coordinate that input coordinate i (x
    first) follows."""

    axes: tuple[int, ...]


@dataclass(frozen=True)
class Oblique:
    """Other maps.

    Args:
        parts: into how many parts output positions are divided along each axis of the output tensor.
        flat: whether the maps are of volumes, and rotate in the xy-plane only.
    """

    parts: tuple[int, ...]
    flat: bool = False


def aligned_axes(map_: Sequence[Sequence[float]]) -> tuple[int, ...] | None:
    """``axes`` of :class:`Aligned` for one map, (d, d + 1) numbers; None if its axes run along no axes of the input."""
    linear = [[abs(value) for value in row[:-1]] for row in map_]
    limit = _AXIS_TOLERANCE * max(max(row) for row in linear)
    along = [[column for column, value in enumerate(row) if value > limit] for row in linear]
    axes = tuple(row[0] for row in along if len(row) == 1)
    return axes if len(set(axes)) == len(map_) else None


def keeps_z(map_: Sequence[Sequence[float]]) -> bool:
    """Whether a map of volumes, (3, 4) numbers, neither tilts the z-axis nor mixes it into others."""
    largest = max(abs(value) for row in map_ for value in row[:3])
    return all(abs(value) <= _AXIS_TOLERANCE * largest for value in (*map_[2][:2], map_[0][2], map_[1][2]))


def group_rows(maps: Tensor, size: Sequence[int], mode: Mode, extent: Tensor) -> list[tuple[Aligned | Oblique, Tensor]]:
    """The kinds of maps in a batch, and the rows of each: a row's kind does not depend on the rest of the batch.

    Arguments as for :func:`sample`, all on the CPU.
    """
    linear = maps[..., :-1].abs()
    along = linear > _AXIS_TOLERANCE * linear.amax(dim=(-1, -2), keepdim=True)
    aligned = (along.sum(-1) == 1).all(-1) & (along.sum(-2) == 1).all(-1)
    groups: list[tuple[Aligned | Oblique, Tensor]] = []
    columns = along.to(torch.int64).argmax(-1)
    if bool(aligned.any()):
        for axes in torch.unique(columns[aligned], dim=0):
            rows = (aligned & (columns == axes).all(-1)).nonzero().squeeze(-1)
            groups.append((Aligned(tuple(axes.tolist())), rows))
    if not bool(aligned.all()):
        flat = torch.zeros(len(maps), dtype=torch.bool)
        if maps.shape[1] == 3:
            flat = torch.tensor([keeps_z(map_) for map_ in maps.tolist()])
        kinds = torch.cat((oblique_parts(maps, size, mode, extent), flat.unsqueeze(-1)), dim=-1)
        for own in torch.unique(kinds[~aligned], dim=0):
            rows = (~aligned & (kinds == own).all(-1)).nonzero().squeeze(-1)
            *parts, is_flat = own.tolist()
            groups.append((Oblique(tuple(parts), bool(is_flat)), rows))
    return groups


def oblique_parts(maps: Tensor, size: Sequence[int], mode: Mode, extent: Tensor) -> Tensor:
    """(N, d) int64: into how many parts output positions are divided along each axis so that nothing aliases."""
    if mode != "area":  # what shrinks is resized first
        return torch.ones(len(maps), maps.shape[1], dtype=torch.int64)
    across = extent.flip(-1).to(maps).unsqueeze(-1)  # x first, like the maps
    steps = (maps[..., :-1] * across).norm(dim=1) / torch.tensor(tuple(size)).flip(0)
    if maps.shape[1] == 2:
        steps = steps.amax(-1, keepdim=True).expand_as(steps)
    parts = torch.ceil(steps - _STEP_TOLERANCE).clamp(min=1).to(torch.int64).flip(-1)
    return (2 * parts).clamp(min=_SUBSAMPLES)
