"""The random numbers of a view: the streams and their purposes, and how the numbers are computed."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

import torch
from torch import Tensor

from densepath.core.random import bits, split_mix, uniform

_BLOCK = 32  # streams that are computed together


class Stream(IntEnum):
    """The purpose of random numbers. A stream has four; changing its number changes the views of every run."""

    CROP = 0  # and the nine after it: one for each attempt
    FLIP = 16
    STAIN = 17
    STAIN_FACTORS = 18
    STAIN_SHIFTS = 19
    JITTER = 20
    JITTER_FACTORS = 21
    JITTER_ORDER = 22
    GRAYSCALE = 23
    BLUR = 24
    SOLARIZE = 25
    TURN_3D = 26
    NOISE = 27
    INTENSITY = 28
    GAMMA = 29
    ELASTIC = 30
    ONE_OF = 31
    CROP_3D = 32  # and the nine after it
    BEZIER = 44
    BEZIER_POINTS = 45
    LOCAL_SHUFFLE = 46
    PAINTING = 47
    PAINTING_BLOCKS = 48  # and the nine after it: two for each block
    PATCH = 58  # zoom and place of the patches of segmentation
    WINDOWS = 64  # and the 31 after it: four for each attempt
    PATTERN = 42
    PATTERN_PLACE = 43
    CUTOUT = 96  # and those after it: one for each hole
    PIXELS = 2**16  # the seed of numbers for each pixel of a view
    PAINTED_PIXELS = 2**27  # and so on
    ELASTIC_PIXELS = 2**28
    CUBES = 2**28 + 2**27
    SHUFFLE_WINDOWS = 2**29
    SHUFFLE_PIXELS = 2**30


class Draw:
    """Random numbers for each row of a view: a function of (seed, epoch, image, view), independent of the batch.

    Args:
        seed: the run's seed.
        epoch: whole epochs done so far.
        index: (N,) int64, the images' positions in their source, on the CPU.
        view: (N,) int64, the number of the view of each row: see :class:`~densepath.views.plan.Plan`.
    """

    def __init__(self, seed: int, epoch: int, index: Tensor, view: Tensor) -> None:
        self.seed, self.epoch, self.index, self.view = seed, epoch, index, view
        self._blocks: dict[int, Tensor] = {}  # (N, 32, 4)
        self._seeds: dict[int, Tensor] = {}  # (N,)
        self._whole: tuple[Draw, slice | Tensor] | None = None

    def __len__(self) -> int:
        return len(self.index)

    def __call__(self, stream: int) -> Tensor:
        """(N, 4) uniform numbers in [0, 1), on the CPU."""
        number = stream // _BLOCK
        if number not in self._blocks and self._whole:
            whole, rows = self._whole
            whole(stream)
            self._blocks[number] = whole._blocks[number][rows]
        elif number not in self._blocks:
            streams = torch.arange(number * _BLOCK, (number + 1) * _BLOCK)
            self._blocks[number] = uniform(self.seed, self.epoch, self.index[:, None], self.view[:, None], streams)
        return self._blocks[number][:, stream % _BLOCK]

    def seeds(self, rows: Sequence[int], stream: int, device: torch.device) -> Tensor:
        """(len(rows),) int64 random bits for :func:`~densepath.core.random.split_mix`, on a device."""
        return self._all_seeds(stream)[list(rows)].to(device, non_blocking=True)

    def _all_seeds(self, stream: int) -> Tensor:
        if stream not in self._seeds and self._whole:
            whole, rows = self._whole
            self._seeds[stream] = whole._all_seeds(stream)[rows]
        elif stream not in self._seeds:
            words = bits(self.seed, self.epoch, self.index, self.view, stream)
            self._seeds[stream] = (words[:, 0] << 32) | words[:, 1]
        return self._seeds[stream]

    def pixels(self, rows: Sequence[int], count: int, device: torch.device, stream: int = Stream.PIXELS) -> Tensor:
        """(len(rows), count) uniform numbers in [0, 1), one for each pixel of some rows, computed on ``device``.

        ``stream`` gives their seeds.
        """
        number = torch.arange(1, 1 + -(-count // 2), device=device)
        words = split_mix(self.seeds(rows, stream, device).unsqueeze(1), number).view(
            torch.int32
        )  # two of 32 bits each
        return (words >> 8).bitwise_and_(2**24 - 1).to(torch.float32).mul_(2.0**-24)[:, :count]

    def take(self, rows: slice | Tensor) -> Draw:
        """The random numbers of some rows. They are computed for all rows at once, when they are asked for."""
        part = Draw(self.seed, self.epoch, self.index[rows], self.view[rows])
        part._whole = self, rows
        return part
