"""Images of any size, read in parts: what predictions on large images work on."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import tifffile
import torch
from torch import Tensor

from densepath.core.errors import UserError
from densepath.sources.conversion import as_pixels
from densepath.sources.corrupt import CorruptImage
from densepath.sources.decode import read_header, read_image
from densepath.sources.pixel_source import PixelSource
from densepath.sources.slides.resolution import Spacing, from_tags
from densepath.sources.slides.slide import Slide, SlideLevel
from densepath.sources.slides.tiff_slide import open_tiff
from densepath.sources.tiff import MAX_PIXELS, mirrored, refuse_stack, stored_orientation, turn
from densepath.sources.tiff_parts import TiffParts

_IN_PARTS = 2**24  # pixels from which a TIFF is decoded in parts


class ImageReader(Protocol):
    """An image whose parts can be read: a file, an image of a packed store, a level of a slide."""

    @property
    def name(self) -> str:
        """The file's name."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""

    @property
    def spacing(self) -> Spacing | None:
        """µm per pixel along y and x; None where unknown."""

    def read(self, top: int, left: int, height: int, width: int) -> npt.NDArray[Any]:
        """A part (height, width, C) that lies in the image.

        Raises:
            CorruptImage: it cannot be decoded.
        """


class _WholeImage:
    """An image whose pixels are decoded together, ``_pixels`` (H, W, C), when they are first read."""

    _pixels: Any

    def read(self, top: int, left: int, height: int, width: int) -> npt.NDArray[Any]:
        """A part (height, width, C)."""
        return self._pixels[top : top + height, left : left + width]


class DecodedImage(_WholeImage):
    """An image in memory.

    Args:
        pixels: (H, W, C).
        name: its name.
        spacing: µm per pixel along y and x.
    """

    def __init__(self, pixels: npt.NDArray[Any], name: str = "image", spacing: Spacing | None = None) -> None:
        self.name, self.spacing = name, spacing
        self._pixels = pixels

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self._pixels.shape[0], self._pixels.shape[1]


class StoredImage(_WholeImage):
    """An image of a packed store.

    Args:
        images: the store.
        position: the image's position in it.
        channels: 1 or 3.
        dtype: uint8 or uint16.
    """

    def __init__(self, images: PixelSource, position: int, channels: int = 3, dtype: npt.DTypeLike = np.uint8) -> None:
        self.name = images.names(position)
        self._images, self._position = images, position
        self._channels, self._dtype = channels, dtype

    @cached_property
    def _index(self) -> Tensor:
        return torch.tensor([self._position])

    @cached_property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        height, width = self._images.sizes(self._index)[0].tolist()
        return height, width

    @property
    def spacing(self) -> Spacing | None:
        """µm per pixel along y and x."""
        spacing = self._images.spacing(self._index)
        if spacing is None or not bool(spacing.isfinite().all()):
            return None
        y, x = spacing[0].tolist()
        return y, x

    @cached_property
    def _pixels(self) -> npt.NDArray[Any]:
        return as_pixels(self._images.read(self._position), self._channels, self._dtype)


class TurnedImage:
    """An image as a viewer shows it, turned and mirrored by its orientation tag.

    Args:
        image: the image as stored.
        orientation: the tag, 1 to 8.
    """

    def __init__(self, image: ImageReader, orientation: int) -> None:
        self.name, self._image, self._orientation = image.name, image, orientation

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        height, width = self._image.size
        return (width, height) if self._orientation > 4 else (height, width)

    @property
    def spacing(self) -> Spacing | None:
        """µm per pixel along y and x, as the viewer shows them."""
        spacing = self._image.spacing
        return spacing[::-1] if spacing is not None and self._orientation > 4 else spacing

    def read(self, top: int, left: int, height: int, width: int) -> npt.NDArray[Any]:
        """A part (height, width, C). Raises CorruptImage."""
        rows, columns = mirrored(self._orientation)
        part = self.size[0] - top - height if rows else top, self.size[1] - left - width if columns else left
        if self._orientation > 4:
            return turn(self._image.read(part[1], part[0], width, height), self._orientation)
        return turn(self._image.read(*part, height, width), self._orientation)


class ImageFile(_WholeImage):
    """An image file, decoded as a whole when it is first read.

    Args:
        path: the file.
        channels: 1 or 3.
        dtype: uint8 or uint16.
    """

    def __init__(self, path: str | Path, channels: int = 3, dtype: npt.DTypeLike = np.uint8) -> None:
        self.name = str(path)
        self._channels, self._dtype = channels, dtype

    @cached_property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels. Raises CorruptImage."""
        header = read_header(self.name)
        return header.height, header.width

    @cached_property
    def spacing(self) -> Spacing | None:
        """µm per pixel along y and x, from the resolution tags of a TIFF."""
        try:
            with tifffile.TiffFile(self.name) as tiff:
                return from_tags(tiff.pages.first)
        except MemoryError:
            raise
        except Exception:  # not a TIFF
            return None

    @cached_property
    def _pixels(self) -> npt.NDArray[Any]:
        return read_image(self.name, None, self._channels, self._dtype)


def open_file(
    path: str | Path, channels: int = 3, dtype: npt.DTypeLike = np.uint8, viewed: bool = False
) -> ImageReader:
    """The reader of an image file: a large TIFF is decoded in parts.

    Args:
        path: the file.
        channels: 1 or 3.
        dtype: uint8 or uint16.
        viewed: turn it by its orientation tag, as a viewer does, instead of reading it as stored.

    Raises:
        CorruptImage: it cannot be read.
    """
    image = _open_stored(path, channels, dtype)
    if not viewed:
        return image
    tag = read_header(path).orientation if isinstance(image, ImageFile) else stored_orientation(path)
    return image if tag == 1 else TurnedImage(image, tag)


def _open_stored(path: str | Path, channels: int, dtype: npt.DTypeLike) -> ImageReader:
    try:
        with tifffile.TiffFile(path) as tiff:
            page: Any = tiff.pages.first
            pixels = page.imagewidth * page.imagelength
            if pixels > _IN_PARTS:
                refuse_stack(path, tiff)
    except (CorruptImage, MemoryError):
        raise
    except Exception:  # not a TIFF, or one that only Pillow reads
        pixels = 0
    if pixels <= _IN_PARTS:
        return ImageFile(path, channels, dtype)
    try:
        reader = TiffParts(path, channels, dtype)
        reader.read(0, 0, 1, 1)
        return reader
    except CorruptImage:
        if channels == 3 and np.dtype(dtype) == np.uint8 and (tiled := _tiled(path)) is not None:
            return tiled
        if pixels <= MAX_PIXELS:
            return ImageFile(path, channels, dtype)
        raise


def _tiled(path: str | Path) -> ImageReader | None:
    """A TIFF of 8 bits with tiles that tifffile does not decode, e.g. JPEG; None for others."""
    try:
        slide = open_tiff(str(path))
        if slide is None or slide.tables[0].format.padded:  # of an image it is refused
            return None
        slide.read(0, (0, 0, 1, 1), 1)
    except UserError:  # it is damaged, or its decoder is not installed
        return None
    return SlideLevel(Slide(str(path), slide))
