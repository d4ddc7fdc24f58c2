"""Decoded images in one flat tensor: mapped from a file, in memory, or on a GPU."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from densepath.core.digests import digest_of, digest_of_files, digest_of_tensors
from densepath.core.files import Unchanged
from densepath.sources.batch import box_of, fill_canvas, new_canvas
from densepath.sources.corrupt import CorruptImage
from densepath.sources.path_table import PathTable
from densepath.sources.pixel_source import Gathered, PixelSpec

BLOCK = 2**16  # entries of a table that are processed at a time: a table of millions is never copied
_LARGE = 2**21  # pixels of an image above which reading boxes is worthwhile; packed files have at most half as many
_RGB = PixelSpec()


class PackedTiles:
    """Decoded images of any dtype, of 2 or 3 dimensions, one after another.

    Boxes are read if the largest image has more than 2 million pixels. Smaller images are copied whole, which is
    fastest for tiles of one size: one operation gathers a batch of them.

    Args:
        pixels: (values,) of any dtype, each image as its (*size, C) values.
        sizes: (N, d) int32 on the CPU, each image's size in pixels.
        offsets: (N,) int64 on the CPU, where in ``pixels`` each image starts.
        names: the images' file names; attribute ``paths``.
        corrupt: positions whose file could not be read, with file name and reason; the next image replaces each.
        file: the packed store on disk, if there is one.
        spec: the meaning of the values.
        spacing: (N, d) float32 on the CPU: the distance of neighboring pixels along each axis; None where unknown.

    Attributes:
        uniform: whether all readable images have one size, and one operation gathers a batch of them.
        table: ``sizes``.
    """

    decodes = False

    def __init__(
        self,
        pixels: Tensor,
        sizes: Tensor,
        offsets: Tensor,
        names: PathTable,
        corrupt: Mapping[int, str] | None = None,
        file: Path | None = None,
        spec: PixelSpec = _RGB,
        spacing: Tensor | None = None,
    ) -> None:
        self.pixels = pixels
        self.table = sizes
        self.offsets = offsets
        self.paths = names
        self.corrupt: Mapping[int, str] = dict(corrupt or {})
        self.file = file
        self._mapped = Unchanged(file) if file is not None else None
        self.spec = spec
        self._spacing = spacing
        self._chosen = ""  # the digest of a part of a store
        self._corrupt_positions = torch.tensor(sorted(self.corrupt), dtype=torch.int64)
        first = next(position for position in range(len(sizes)) if position not in self.corrupt)
        self._size: list[int] = sizes[first].tolist()
        blocks = range(0, len(sizes), BLOCK)
        self.uniform = all(self._is_uniform(start) for start in blocks)
        largest = max(int(sizes[start : start + BLOCK].long().prod(dim=1).max()) for start in blocks)
        self.reads_boxes = largest > _LARGE

    def __len__(self) -> int:
        return len(self.table)

    def names(self, position: int) -> str:
        """The file name of an image."""
        return self.paths[position]

    @property
    def device(self) -> torch.device:
        """The device of the pixels."""
        return self.pixels.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the pixels."""
        return self.pixels.dtype

    def sizes(self, index: Tensor) -> Tensor:
        """(B, d) int64: the sizes of images."""
        return self.table[index].to(torch.int64)

    def spacing(self, index: Tensor) -> Tensor | None:
        """(B, d) float32: the distance of neighboring pixels along each axis."""
        return None if self._spacing is None else self._spacing[index]

    def to(self, device: torch.device | str) -> PackedTiles:
        """The store with its pixels copied to the memory of a device (from a mapped file, also to the CPU's)."""
        self._check()
        pixels = self.pixels.to(device, copy=True)
        copied = PackedTiles(
            pixels, self.table, self.offsets, self.paths, self.corrupt, self.file, self.spec, self._spacing
        )
        copied._mapped = None  # it no longer reads the file
        copied._chosen = self._chosen
        return copied

    def take(self, positions: Tensor) -> PackedTiles:
        """The store with only the images at some positions (K,), none of which is corrupt; pixels are shared."""
        names = PathTable.of(self.paths[int(position)] for position in positions)
        spacing = None if self._spacing is None else self._spacing[positions]
        table, offsets = self.table[positions], self.offsets[positions]
        taken = PackedTiles(self.pixels, table, offsets, names, None, self.file, self.spec, spacing)
        taken._mapped = self._mapped
        taken._chosen = digest_of_tensors({"offsets": offsets})
        return taken

    def _check(self) -> None:
        if self._mapped is not None:
            self._mapped.check()

    def smallest(self) -> tuple[int, int]:
        """The position of the image with the shortest side, and that side in pixels."""
        if self.uniform:
            return next(position for position in range(len(self)) if position not in self.corrupt), min(self._size)
        sides = self.table.amin(dim=1)
        sides[self._corrupt_positions] = torch.iinfo(torch.int32).max
        position = int(sides.argmin())
        return position, int(sides[position])

    def read(self, position: int) -> npt.NDArray[Any]:
        """One image (*size, C), or :class:`CorruptImage`."""
        self._check()
        if position in self.corrupt:
            name = self.names(position)
            raise CorruptImage(name, self.corrupt[position].removeprefix(f"{name}: "))
        image: Tensor = next(self._images(self.pixels, torch.tensor([position])))
        return image.cpu().numpy()

    def gather(self, index: Tensor, boxes: Tensor | None = None, pin: bool = False) -> Gathered:
        """Copy images, or boxes of them, onto one canvas on the device of the pixels.

        Args:
            index: (B,) int64 on the CPU, positions in the source.
            boxes: (B, 2, d) the boxes to read; None for whole images.
            pin: into page-locked memory, from where a GPU fetches them while other work runs.
        """
        self._check()
        index = self._readable(index)
        sizes = self.sizes(index)
        if boxes is not None:
            boxes = torch.minimum(boxes, sizes.unsqueeze(1))  # an image may replace a larger one
        size = (sizes if boxes is None else boxes[:, 1] - boxes[:, 0]).amax(dim=0).tolist()
        if self.pixels.is_cuda:
            return Gathered(self._gather_on_device(index, size, boxes), sizes, index, {}, boxes)
        canvas = new_canvas(len(index), size, self.spec.channels, self.dtype, pin)
        numbers, out = self.pixels.numpy(), canvas.numpy()
        if self.uniform and boxes is None:
            shape = (*size, self.spec.channels)
            tile = math.prod(shape)
            tiles = numbers[: len(numbers) // tile * tile].reshape(-1, *shape)
            rows = (self.offsets[index] // tile).numpy()
            np.take(tiles, rows, axis=0, out=out, mode="clip")  # "raise" would copy everything twice
        else:
            fill_canvas(out, self._parts(numbers, index, boxes))
        return Gathered(canvas, sizes, index, {}, boxes)

    def digest(self, cache: Path) -> str:
        """The identity of the images: a digest of their files' contents if there are any, else of their pixels."""
        # Decoded images are identified by their files: the next run may read the files without decoding all of them.
        if self.file is None and all(map(os.path.exists, self.paths)):
            return digest_of_files(lambda: self.paths, len(self), cache)
        if self.file is None:
            whole = digest_of_tensors({"table": self.table, "pixels": self.pixels})
        else:
            store = self.file
            whole = digest_of_files(lambda: [store], 1, cache)
        return digest_of([whole, self._chosen]) if self._chosen else whole

    def _gather_on_device(self, index: Tensor, size: list[int], boxes: Tensor | None) -> Tensor:
        # CUDA cannot index uint16; the bits are moved as int16.
        numbers = self.pixels.view(torch.int16) if self.dtype == torch.uint16 else self.pixels
        shape = (*size, self.spec.channels)
        if self.uniform and boxes is None:
            tile = math.prod(shape)
            tiles = numbers[: numbers.numel() // tile * tile].view(-1, tile)
            rows = (self.offsets[index] // tile).to(self.device, non_blocking=True)
            canvas = tiles.index_select(0, rows).view(-1, *shape)
        else:
            canvas = torch.empty((len(index), *shape), dtype=numbers.dtype, device=self.device)
            fill_canvas(canvas, self._parts(numbers, index, boxes))
        return canvas.view(self.dtype)

    def _images(self, numbers: Any, index: Tensor) -> Iterator[Any]:
        """Images (*size, C), as parts of ``numbers``."""
        sizes = self.table[index].tolist()
        for start, size in zip(self.offsets[index].tolist(), sizes, strict=True):
            shape = (*size, self.spec.channels)
            yield numbers[start : start + math.prod(shape)].reshape(shape)

    def _parts(self, numbers: Any, index: Tensor, boxes: Tensor | None) -> Iterator[Any]:
        images = self._images(numbers, index)
        return images if boxes is None else map(box_of, images, boxes.tolist())

    def _is_uniform(self, start: int) -> bool:
        """Whether the readable images of a block have the size of the first one, each a row of (-1, *size, C).

        In a part they are not rows if it leaves out an image of another size that comes before them.
        """
        block = slice(start, start + BLOCK)
        other = (self.table[block] != torch.tensor(self._size)).any(dim=1)
        other |= self.offsets[block] % (math.prod(self._size) * self.spec.channels) != 0
        return bool(torch.isin(other.nonzero().flatten() + start, self._corrupt_positions).all())

    def _readable(self, index: Tensor) -> Tensor:
        if self.corrupt:
            while bool((hit := torch.isin(index, self._corrupt_positions)).any()):
                index = torch.where(hit, (index + 1) % len(self), index)
        return index
