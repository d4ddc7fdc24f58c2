"""One image file to 8-bit RGB, whatever it holds; a file that cannot be read says why."""

from __future__ import annotations

import logging
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile
from PIL import Image, JpegImagePlugin, TiffImagePlugin, UnidentifiedImageError

from densepath.core.errors import one_line

FORMATS = ("PNG", "JPEG", "TIFF", "WEBP", "BMP", "DIB")
MAX_PIXELS = 2**28 // 3  # 256 MiB of RGB, where Pillow begins to warn of decompression bombs
_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_COMPRESSION_TAG, _PHOTOMETRIC_TAG, _ORIENTATION_TAG, _PLANES_TAG = 259, 262, 274, 284
_TILE_WIDTH_TAG, _TILE_HEIGHT_TAG = 322, 323
_WHITE_IS_ZERO = 0
_DEFLATE, _UNBOUNDED = (8, 32946, 50013), (34925, 50000)  # compressions; the latter are LZMA and Zstandard

logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what ails a file is said once, by DamagedImage
Image.init()  # Pillow loads its plugins at the first use, which threads must not do at the same time


class DamagedImage(Exception):
    """A file that should hold an image and cannot be read.

    Args:
        path: the file.
        why: what is wrong with it, in a few words.
    """

    def __init__(self, path: str, why: str) -> None:
        super().__init__(path, why)
        self.path = path
        self.why = why

    def __str__(self) -> str:
        return one_line(f"{self.path}: {self.why}")


def read_image(path: str | Path, max_side: int | None = None) -> npt.NDArray[np.uint8]:
    """Decode a PNG, JPEG, TIFF, WebP or BMP file.

    Whatever the file holds becomes RGB: grey, palette and CMYK too; what is transparent lies on white, as a slide's
    background is. Of 16 bits the upper 8 are kept (value // 256: the full range is mapped, whatever part of it the
    image uses). An orientation tag (EXIF, TIFF) is ignored: the pixels lie as they are stored. Of several pages or
    frames the first is read.

    Args:
        path: the file; its content decides the format, not its suffix.
        max_side: reduce an image whose longer side is larger (pixels) by the smallest whole factor that makes it fit.
            Blocks of pixels are averaged; for JPEG, a factor's powers of two are taken while decoding.

    Returns:
        uint8 (H, W, 3).

    Raises:
        DamagedImage: missing, truncated, foreign, 32-bit or floating-point pixels, or more than ``MAX_PIXELS`` pixels
            (refused before any memory is taken for them).
    """
    try:
        with _open(path) as image:
            factor = _factor(image.size, max_side)
            if isinstance(image, JpegImagePlugin.JpegImageFile):
                shrink = next(power for power in (8, 4, 2, 1) if factor % power == 0 and min(image.size) >= power)
                image.draft(None, (image.width // shrink, image.height // shrink))
                factor //= shrink
            picture = _to_rgb(image)
            return np.array(picture.reduce(factor) if factor > 1 else picture)
    except (DamagedImage, MemoryError):
        raise
    except Exception as error:  # Pillow's plugins raise nearly every type on broken bytes
        raise DamagedImage(str(path), _reason(error)) from error


def read_size(path: str | Path, max_side: int | None = None) -> tuple[int, int]:
    """The (height, width) in pixels that :func:`read_image` would give, from the file's header alone.

    Raises:
        DamagedImage: as for :func:`read_image`, as far as the header shows it.
    """
    try:
        with _open(path) as image:
            factor = _factor(image.size, max_side)
            return -(-image.height // factor), -(-image.width // factor)
    except (DamagedImage, MemoryError):
        raise
    except Exception as error:  # as above
        raise DamagedImage(str(path), _reason(error)) from error


def _open(path: str | Path) -> Image.Image:
    """Open with Pillow, or with tifffile the TIFFs that Pillow does not know or would not leave as they are."""
    try:
        image: Image.Image = Image.open(path, formats=FORMATS)
    except UnidentifiedImageError:
        with open(path, "rb") as file:
            start = file.read(4)
        if not start:
            raise DamagedImage(str(path), "the file is empty") from None
        if start not in _TIFF_STARTS:
            raise DamagedImage(str(path), "not an image, or cut off in its first bytes") from None
        return _open_tiff(path)
    refuse_bomb(path, *image.size)
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        # Pillow turns such files itself, and garbles uncompressed ones; it garbles 16-bit planes, too
        refuse_bomb(path, image.tag_v2.get(_TILE_WIDTH_TAG, 0), image.tag_v2.get(_TILE_HEIGHT_TAG, 0))
        turned = image.tag_v2.get(_ORIENTATION_TAG, 1) != 1
        planes = image.tag_v2.get(_PLANES_TAG) == 2 and image.tag_v2.get(_COMPRESSION_TAG, 1) == 1
        if turned or planes:
            image.close()
            return _open_tiff(path)
    return image


def _open_tiff(path: str | Path) -> Image.Image:
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages.first
        refuse_bomb(path, page.imagewidth, page.imagelength * page.imagedepth)
        refuse_bomb(path, page.tilewidth, page.tilelength * page.tiledepth)
        if page.dtype not in (np.uint8, np.uint16) or page.samplesperpixel > 4:
            raise DamagedImage(str(path), f"{page.samplesperpixel} channels of {page.dtype} are not 8- or 16-bit RGB")
        if max(page.databytecounts, default=0) > tiff.filehandle.size:
            raise DamagedImage(str(path), "it claims more bytes than it has; copy it again")
        _refuse_swelling(path, page)
        pixels = page.asarray()
        if page.axes.startswith("S"):
            pixels = np.moveaxis(pixels, 0, -1)
        if page.photometric == _WHITE_IS_ZERO:
            pixels = np.invert(pixels)
    return Image.fromarray(np.ascontiguousarray(_upper_bits(pixels)))


def refuse_bomb(path: str | Path, width: int, height: int) -> None:
    """Refuse more pixels than ``MAX_PIXELS``.

    Raises:
        DamagedImage: there are more.
    """
    if width * height > MAX_PIXELS:
        raise DamagedImage(str(path), f"{width} x {height} px are more than {MAX_PIXELS:,}; cut it into tiles first")


def _refuse_swelling(path: str | Path, page: tifffile.TiffPage) -> None:
    """Refuse compressed parts that hold more than they should: tifffile would take the memory for all of it."""
    if page.compression in _UNBOUNDED:
        kind = tifffile.COMPRESSION(page.compression).name
        raise DamagedImage(str(path), f"TIFF compressed by {kind} is not read; save it with deflate")
    if page.compression not in _DEFLATE or page.dtype is None:
        return
    high, wide = (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, page.imagewidth)
    most = min(high * wide * page.samplesperpixel * page.dtype.itemsize, 8 * MAX_PIXELS)
    segments: Any = page.parent.filehandle.read_segments(page.dataoffsets, page.databytecounts)
    for data, _ in segments:
        inflater = zlib.decompressobj()
        inflater.decompress(data or b"", most)
        if inflater.unconsumed_tail and inflater.decompress(inflater.unconsumed_tail, 1):
            raise DamagedImage(str(path), "a part of it holds more pixels than it should; save it anew")


def _factor(size: tuple[int, int], max_side: int | None) -> int:
    return 1 if max_side is None else -(-max(size) // max_side)


def _upper_bits(pixels: npt.NDArray[np.uint16] | npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    return (pixels if pixels.dtype == np.uint8 else pixels >> 8).astype(np.uint8)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F"):
        raise ValueError("32-bit or floating-point pixels have no agreed range; convert the image to 8 or 16 bits")
    if image.mode.startswith("I;16"):
        pixels = _upper_bits(np.asarray(image))
        # Pillow inverts such 8-bit TIFFs itself, but not those of 16 bits
        tags = getattr(image, "tag_v2", {})
        inverted = tags.get(_PHOTOMETRIC_TAG) == _WHITE_IS_ZERO
        return Image.fromarray(255 - pixels if inverted else pixels).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "the file is missing"
    if isinstance(error, LookupError):  # its text is a bare key or number
        return "cannot be decoded (parts of the file are missing)"
    text = (getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()[0]
    return f"cannot be decoded ({text})"
