"""The images of a source, one by one, as an encoder takes them."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image

from densepath.core.digests import digest_of, stamp
from densepath.core.errors import UserError
from densepath.core.output_names import names_below, refuse_repeated
from densepath.sources.conversion import as_pixels
from densepath.sources.corrupt import CorruptImage
from densepath.sources.image_files import ImageFiles
from densepath.sources.names import AllNames
from densepath.sources.open import find_source
from densepath.sources.packed import PackedTiles
from densepath.sources.pixel_source import PixelSource, PixelSpec


def open_source(data: str | Path, exclude: Sequence[str] = ()) -> PixelSource:
    """The images of a folder, list, glob, file or packed store, in their full size."""
    return find_source(data, sys.maxsize, exclude)


class Inputs:
    """The images of a source as an encoder takes them.

    Args:
        images: the source.
        data: where it is, below which its images are named.
        spec: the specification of the encoder's pixels.
        size: side in pixels: the short side of an image is resized to it, and the center is cut out, as timm and
            torchvision do in evaluation; None for the pixels as they are.

    Attributes:
        names: (N,) the path of each image below the folder that contains all, with "/".

    Raises:
        UserError: an image is listed twice, or volumes would have to be resized.
    """

    def __init__(self, images: PixelSource, data: str | Path, spec: PixelSpec, size: int | None) -> None:
        if size is not None and images.spec.ndim != 2:
            raise UserError("--size resizes images of 2 dimensions; leave it out for volumes")
        self.images, self.size = images, size
        self._channels = spec.channels
        self._grey_or_color = spec.ndim == 2 and images.spec.channels in (1, 3)
        self._file = images.file if isinstance(images, PackedTiles) else None
        names = names_below(AllNames(images), data) if isinstance(images, ImageFiles) else list(AllNames(images))
        self.names = [name.replace(os.sep, "/") for name in names]
        refuse_repeated(self.names, data)
        if isinstance(images, ImageFiles):
            images.spec = spec  # they are decoded with its channels

    def __len__(self) -> int:
        return len(self.names)

    def read(self, position: int) -> npt.NDArray[Any] | CorruptImage:
        """An image (*size, C), or why it cannot be read."""
        try:
            pixels = self.images.read(position)
        except CorruptImage as error:
            return error
        if self._grey_or_color:
            pixels = as_pixels(pixels, self._channels, pixels.dtype)
        return pixels if self.size is None else center(pixels, self.size)

    def stamp(self, positions: range) -> str:
        """What changes when one of some images is replaced: their names, sizes and times."""
        file_of = getattr(self.images, "path", self.images.names)  # names of volumes in a store are not paths
        files = [self._file] if self._file is not None else [file_of(position) for position in positions]
        return digest_of([*(stamp(file) for file in files), *(self.names[position] for position in positions)])


def center(pixels: npt.NDArray[Any], size: int) -> npt.NDArray[Any]:
    """The center (size, size, C) of an image (H, W, C) whose short side is resized to ``size``: bicubic, antialiased.

    8-bit images become those of torchvision's ``Resize(size, BICUBIC)`` and ``CenterCrop(size)``.
    """
    height, width = pixels.shape[:2]
    short = min(height, width)
    if short != size:
        height, width = (size if side == short else int(size * side / short) for side in (height, width))
        pixels = _resize(pixels, height, width)
    top, left = (round((side - size) / 2.0) for side in (height, width))
    return pixels[top : top + size, left : left + size]


def _resize(pixels: npt.NDArray[Any], height: int, width: int) -> npt.NDArray[Any]:
    if pixels.dtype == np.uint8 and pixels.shape[2] in (1, 3):
        image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
        return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC)).reshape(height, width, -1)
    values = torch.from_numpy(pixels.astype(np.float32)).movedim(2, 0)[None]
    resized = F.interpolate(values, (height, width), mode="bicubic", antialias=True, align_corners=False)
    out = resized[0].movedim(0, 2).numpy()
    if pixels.dtype.kind not in "iu":
        return out.astype(pixels.dtype)
    limits = np.iinfo(pixels.dtype)
    return np.rint(out).clip(limits.min, limits.max).astype(pixels.dtype)
