"""Decoded images in one flat tensor, wherever it lies: mapped from a file, in memory, on a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from densepath.sources.batch import lay, new_canvas
from densepath.sources.path_table import Names
from densepath.sources.pixel_source import Gathered

CHANNELS = 3
BLOCK = 2**16  # entries of a table that are looked at together: a table of millions is never copied


class PackedTiles:
    """Decoded images, one after another.

    Args:
        pixels: (bytes,) uint8, each image as its (h, w, 3) bytes.
        sizes: (N, 2) int32 on the CPU, each image's height and width in pixels.
        offsets: (N,) int64 on the CPU, where in ``pixels`` each image begins.
        names: the images' file names, which become the attribute ``paths``.
        damaged: positions whose file could not be read, with file name and reason; the next image takes their place.
        file: the packed store on disk that holds them, if there is one.
    """

    def __init__(
        self,
        pixels: Tensor,
        sizes: Tensor,
        offsets: Tensor,
        names: Names,
        damaged: dict[int, str] | None = None,
        file: Path | None = None,
    ) -> None:
        self.pixels = pixels
        self.sizes = sizes
        self.offsets = offsets
        self.paths = names
        self.damaged = damaged or {}
        self.file = file
        self._damaged_positions = torch.tensor(sorted(self.damaged), dtype=torch.int64)
        first = next(position for position in range(len(sizes)) if position not in self.damaged)
        self._size = sizes[first].tolist()
        self.uniform = all(self._is_uniform(start) for start in range(0, len(sizes), BLOCK))

    def __len__(self) -> int:
        return len(self.sizes)

    def names(self, position: int) -> str:
        """The file name of an image."""
        return self.paths[position]

    @property
    def device(self) -> torch.device:
        """Where the pixels lie."""
        return self.pixels.device

    def to(self, device: torch.device | str) -> PackedTiles:
        """The store with its pixels in the memory of a device (copied there, also from a file to the CPU's memory)."""
        pixels = self.pixels.to(device, copy=True)
        return PackedTiles(pixels, self.sizes, self.offsets, self.paths, self.damaged, self.file)

    def smallest(self) -> tuple[int, int]:
        """The position of the image with the shortest side, and that side in pixels."""
        if self.uniform:
            return next(position for position in range(len(self)) if position not in self.damaged), min(self._size)
        sides = self.sizes.amin(dim=1)
        sides[self._damaged_positions] = torch.iinfo(torch.int32).max
        position = int(sides.argmin())
        return position, int(sides[position])

    def gather(self, index: Tensor, pin: bool = False) -> Gathered:
        """Copy images onto one canvas, on the device where the pixels lie.

        Args:
            index: (B,) int64 on the CPU, positions in the source.
            pin: into page-locked memory, from where a GPU fetches them while other work runs.
        """
        index = self._readable(index)
        sizes = self.sizes[index].to(torch.int64)
        starts = self.offsets[index]
        height, width = sizes.amax(dim=0).tolist()
        if self.pixels.is_cuda:
            canvas = self._gather_on_device(sizes, starts, height, width)
            return Gathered(canvas, sizes, index, {})
        canvas = new_canvas(len(index), height, width, pin)
        if self.uniform:
            tile = height * width * CHANNELS
            tiles = self.pixels.numpy()[: self.pixels.numel() // tile * tile].reshape(-1, height, width, CHANNELS)
            rows = (starts // tile).numpy()
            np.take(tiles, rows, axis=0, out=canvas.numpy(), mode="clip")  # "raise" would copy everything twice
        else:
            lay(canvas.numpy(), _images(self.pixels.numpy(), sizes, starts))
        return Gathered(canvas, sizes, index, {})

    def _gather_on_device(self, sizes: Tensor, starts: Tensor, height: int, width: int) -> Tensor:
        if self.uniform:
            tile = height * width * CHANNELS
            tiles = self.pixels[: self.pixels.numel() // tile * tile].view(-1, tile)
            rows = (starts // tile).to(self.device, non_blocking=True)
            return tiles.index_select(0, rows).view(-1, height, width, CHANNELS)
        canvas = torch.empty((len(sizes), height, width, CHANNELS), dtype=torch.uint8, device=self.device)
        lay(canvas, _images(self.pixels, sizes, starts))
        return canvas

    def _is_uniform(self, start: int) -> bool:
        """Whether the readable images of a block have the size of the first one."""
        other = (self.sizes[start : start + BLOCK] != torch.tensor(self._size)).any(dim=1).nonzero().flatten() + start
        return bool(torch.isin(other, self._damaged_positions).all())

    def _readable(self, index: Tensor) -> Tensor:
        if self.damaged:
            while bool((hit := torch.isin(index, self._damaged_positions)).any()):
                index = torch.where(hit, (index + 1) % len(self), index)
        return index


def _images(pixels: Any, sizes: Tensor, starts: Tensor) -> Any:
    for start, (height, width) in zip(starts.tolist(), sizes.tolist(), strict=True):
        yield pixels[start : start + height * width * CHANNELS].reshape(height, width, CHANNELS)
