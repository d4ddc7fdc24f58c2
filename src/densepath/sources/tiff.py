"""TIFF files that Pillow does not read or would change, read by tifffile."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile

from densepath.sources.corrupt import CorruptImage

MAX_PIXELS = 2**28 // 3  # 256 MiB of RGB, above which Pillow warns of decompression bombs
_WHITE_IS_ZERO = 0

logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # CorruptImage reports what is wrong with a file


def refuse_bomb(path: str | Path, width: int, height: int) -> None:
    """Refuse images with more pixels than ``MAX_PIXELS``.

    Raises:
        CorruptImage: there are more.
    """
    if width * height > MAX_PIXELS:
        raise CorruptImage(str(path), f"{width} x {height} px are more than {MAX_PIXELS:,}; cut it into tiles first")


def tiff_header(path: str | Path) -> tuple[int, int, int, int]:
    """Height and width in pixels, channels and bits of a TIFF's first page.

    Raises:
        CorruptImage: the pixels are not 8- or 16-bit grey or RGB, or too many.
    """
    with tifffile.TiffFile(path) as tiff:
        page = _checked(path, tiff)
        return page.imagelength, page.imagewidth, page.samplesperpixel, 8 * np.dtype(page.dtype).itemsize


def read_tiff(path: str | Path) -> npt.NDArray[Any]:
    """Decode a TIFF's first page as stored, with white as the largest value.

    Returns:
        uint8 or uint16 (H, W) or (H, W, C).

    Raises:
        CorruptImage: as for :func:`tiff_header`, or its parts claim to be longer than the file.
    """
    with tifffile.TiffFile(path) as tiff:
        page = _checked(path, tiff)
        if max(page.databytecounts, default=0) > tiff.filehandle.size:
            raise CorruptImage(str(path), "it claims more bytes than it has; copy it again")
        pixels: npt.NDArray[Any] = page.asarray()
        if page.axes.startswith("S"):
            pixels = np.moveaxis(pixels, 0, -1)
        if page.photometric == _WHITE_IS_ZERO:
            pixels = np.invert(pixels)
    return np.ascontiguousarray(pixels)


def _checked(path: str | Path, tiff: tifffile.TiffFile) -> Any:
    """The first page of a file, if it may be read."""
    page: Any = tiff.pages.first
    refuse_bomb(path, page.imagewidth, page.imagelength * page.imagedepth)
    refuse_bomb(path, page.tilewidth, page.tilelength * page.tiledepth)
    if page.dtype not in (np.uint8, np.uint16) or page.samplesperpixel > 4:
        raise CorruptImage(str(path), f"{page.samplesperpixel} channels of {page.dtype} are not 8- or 16-bit RGB")
    return page
