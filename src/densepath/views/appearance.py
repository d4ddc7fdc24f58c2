"""The interface of appearance operations, and how one is applied to the images that it is drawn for.

Random numbers are drawn on the CPU, so the images that an operation changes are known without synchronization.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import ClassVar

import torch
from torch import Tensor

from densepath.core.errors import UserError
from densepath.views.random_streams import Draw

_CACHED = 2**18  # values, 1 MB of floats


class Appearance(ABC):
    """An operation on the appearance of views, in any number of dimensions. Subclasses are small frozen dataclasses.

    Attributes:
        channels: how many channels of a pixel it needs; None for any number.
        turned_off_by: options of ``augment`` that are 0 without it, for images with another number of channels.
    """

    channels: ClassVar[int | None] = None
    turned_off_by: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def apply(self, x: Tensor, draw: Draw) -> Tensor:
        """Change the appearance of each view by its own random numbers. Overwrites and returns ``x``.

        Args:
            x: (N, C, *spatial) floats in [0, 1].
            draw: the random numbers of the N rows.
        """

    @property
    def changes_colors(self) -> bool:
        """Whether part of the operation needs colors."""
        return self.channels is not None

    def without_color(self) -> Appearance | None:
        """The part of the operation that applies to images without colors; None if there is none."""
        return None if self.changes_colors else self


def chosen(draw: Draw, stream: int, probability: float) -> list[int]:
    """The rows that an operation with a probability is applied to: those whose first number is below it."""
    return (draw(stream)[:, 0] < probability).nonzero().flatten().tolist() if probability else []


def change(x: Tensor, rows: list[int], operation: Callable[[Tensor, list[int]], Tensor]) -> None:
    """Apply an operation, which gets the rows and their numbers, to some rows of x, in place.

    One thread of a CPU takes as many rows at a time as stay in its cache. (Several divide them among themselves.)
    """
    if rows and x.device.type == "cpu" and torch.get_num_threads() == 1:
        at_once = max(1, _CACHED // x[0].numel())
        for start in range(0, len(rows), at_once):
            _change(x, rows[start : start + at_once], operation)
    else:
        _change(x, rows, operation)


def _change(x: Tensor, rows: list[int], operation: Callable[[Tensor, list[int]], Tensor]) -> None:
    if not rows:
        return
    if len(rows) == 1:
        part = x[rows[0] : rows[0] + 1]
        part.copy_(operation(part, rows))
    elif len(rows) == len(x):
        x.copy_(operation(x, rows))
    else:
        on_device = torch.tensor(rows).to(x.device, non_blocking=True)
        x.index_copy_(0, on_device, operation(x.index_select(0, on_device), rows))


def per_image(factor: Tensor, x: Tensor) -> Tensor:
    """Factors (N,) in a shape that is broadcast against x (N, ...)."""
    return factor.view(-1, *[1] * (x.ndim - 1))


def check_probability(name: str, value: float) -> None:
    """Raise UserError where a value is not a probability."""
    if not 0 <= value <= 1:
        raise UserError(f"{name} must be between 0 and 1, not {value}")


def check_range(name: str, values: Iterable[float], zero: bool = False) -> None:
    """Raise UserError where values are not a finite range above 0, or with ``zero`` from 0."""
    numbers = tuple(values) if isinstance(values, Iterable) else (values,)
    if len(numbers) != 2 or not 0 <= numbers[0] <= numbers[1] < math.inf or not (zero or numbers[0]):
        kind = "numbers from 0" if zero else "positive numbers"
        raise UserError(f"{name} must be two {kind}, the smaller first, not {', '.join(map(str, numbers))}")


def check_not_negative(name: str, value: float) -> None:
    """Raise UserError where a value is negative, infinite or NaN."""
    if not 0 <= value < math.inf:
        raise UserError(f"{name} must be at least 0 and finite, not {value}")
