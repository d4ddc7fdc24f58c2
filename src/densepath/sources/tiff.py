"""TIFF files that Pillow does not read or would change, read by tifffile."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile
from PIL import Image, TiffImagePlugin

from densepath.core.errors import UserError, counted
from densepath.sources.conversion import stored_numbers, straight
from densepath.sources.corrupt import CorruptImage
from densepath.sources.tiff_colors import SEPARATE, is_premultiplied, refuse_channels, refuse_colors

MAX_PIXELS = 2**28 // 3  # 256 MiB of RGB, above which Pillow warns of decompression bombs
TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_WHITE_IS_ZERO = 0  # PhotometricInterpretation
_COMPRESSION_TAG, _PHOTOMETRIC_TAG, _ORIENTATION_TAG, _CHANNELS_TAG, _PLANES_TAG = 259, 262, 274, 277, 284
_DESCRIPTION_TAG, _TILE_WIDTH_TAG, _TILE_HEIGHT_TAG, _EXTRA_TAG, _FORMAT_TAG = 270, 322, 323, 338, 339
_COUNT_TAGS = (279, 325)  # StripByteCounts, TileByteCounts
_SIGNED = 2  # SampleFormat
_IMAGEJ = "ImageJ="  # how its descriptions begin
_OTHER_VIEWS = 1 | 4  # NewSubfileType: reduced, or a mask of transparency

logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # CorruptImage reports what is wrong with a file


def refuse_bomb(path: str | Path, width: int, height: int) -> None:
    """Refuse images with more pixels than ``MAX_PIXELS``.

    Raises:
        CorruptImage: there are more.
    """
    if width * height > MAX_PIXELS:
        raise too_large(path, f"{width} x {height} px are")


def too_large(path: str | Path, what: str = "its pixels are") -> CorruptImage:
    """The error for an image with more pixels than ``MAX_PIXELS``."""
    remedy = "cut it into smaller images, a tiled TIFF with `densepath tile`"
    return CorruptImage(str(path), f"{what} more than {MAX_PIXELS:,}; {remedy}")


def refuse_stack(path: str | Path, tiff: tifffile.TiffFile) -> None:
    """Refuse a file that is a stack, see :func:`is_stack`.

    Raises:
        CorruptImage: it is one.
    """
    if is_stack(tiff):
        first: Any = tiff.pages.first
        raise CorruptImage(
            str(path),
            f"it has several pages of {first.imagewidth} x {first.imagelength} px (channels or slices?); save the one "
            "to read, or an RGB image of them, as a file of its own",
        )


def is_stack(tiff: tifffile.TiffFile) -> bool:
    """Whether further pages of a file are other images than the first: channels, or slices of a stack.

    An ImageJ stack may have one header for all of its pages.
    """
    others: Iterator[Any] = islice(tiff.pages, 1, None)
    first = tiff.pages.first
    several = tiff.is_imagej and int((tiff.imagej_metadata or {}).get("images", 1)) > 1
    return several or any(is_slice(page, first) for page in others)


def is_slice(page: Any, first: Any) -> bool:
    """Whether a page is another image of the kind of the first one.

    The levels of a pyramid, thumbnails, labels and masks of transparency have other sizes, or say what they are. Other
    masks of an image have fewer channels, or numbers of another type.
    """
    if (page.imagewidth, page.imagelength) != (first.imagewidth, first.imagelength) or page.subfiletype & _OTHER_VIEWS:
        return False
    fewer = page.samplesperpixel < first.samplesperpixel
    return not (fewer or (page.samplesperpixel == first.samplesperpixel and page.dtype != first.dtype))


def pillow_corrupts(path: str | Path, image: TiffImagePlugin.TiffImageFile) -> bool:
    """Check a TIFF that Pillow has opened.

    Returns:
        Whether Pillow would change its pixels: it applies the orientation itself and corrupts uncompressed files, and
        16-bit planes too; of parts that were left out of the file it reads other bytes.

    Raises:
        CorruptImage: it has more pixels in a tile than ``MAX_PIXELS``, unmarked channels, signed numbers, which Pillow
            reads as unsigned ones where they have 8 bits, or pages that are other images.
    """
    tags = image.tag_v2
    refuse_bomb(path, tags.get(_TILE_WIDTH_TAG, 0), tags.get(_TILE_HEIGHT_TAG, 0))
    refuse_channels(path, tags.get(_PHOTOMETRIC_TAG, 0), tags.get(_CHANNELS_TAG, 1), tags.get(_EXTRA_TAG, ()))
    if _SIGNED in np.atleast_1d(tags.get(_FORMAT_TAG, ())):
        raise CorruptImage(str(path), "signed pixels have no agreed range; convert the image to unsigned 8 or 16 bits")
    if _IMAGEJ in str(tags.get(_DESCRIPTION_TAG, "")) or _has_pages(image):
        with tifffile.TiffFile(path) as tiff:
            refuse_stack(path, tiff)
    planes = tags.get(_PLANES_TAG) == SEPARATE and tags.get(_COMPRESSION_TAG, 1) == 1
    left_out = any(0 in tags.get(code, ()) for code in _COUNT_TAGS)
    return bool(tags.get(_ORIENTATION_TAG, 1) != 1 or planes or left_out)


def _has_pages(image: TiffImagePlugin.TiffImageFile) -> bool:
    try:
        image.seek(1)
        return True
    except MemoryError:
        raise
    except Exception:  # the first is the last, or its pointer to another is damaged
        return False
    finally:
        image.seek(0)


def turn(pixels: npt.NDArray[Any], orientation: int) -> npt.NDArray[Any]:
    """Pixels (H, W, ...) as stored, as a viewer shows them: turned and mirrored by an orientation tag (1 to 8)."""
    if orientation > 4:
        pixels = np.swapaxes(pixels, 0, 1)
    rows, columns = mirrored(orientation)
    return np.ascontiguousarray(pixels[:: -1 if rows else 1, :: -1 if columns else 1])


def mirrored(orientation: int) -> tuple[bool, bool]:
    """Whether :func:`turn` reverses the rows and the columns of what it returns."""
    return orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)


def read_stored(path: str | Path) -> npt.NDArray[Any]:
    """Decode a TIFF of one page as stored: numbers of any type, whatever white is and whatever way it is turned.

    Raises:
        CorruptImage: as for :func:`stored_shape`, or its parts claim to be longer than the file.
        UserError: as for :func:`stored_shape`.
    """
    with tifffile.TiffFile(path) as tiff:
        page = _single(path, tiff)
        try:
            return _pixels(path, tiff, page)
        except ValueError as error:
            if "imagecodecs" not in str(error):
                raise
        orientation = orientation_of(page)
    with Image.open(path, formats=("TIFF",)) as image:  # LZW, which Pillow reads; it turns and inverts pixels
        stored = stored_numbers(image)
        stored = stored.view(np.int8) if page.dtype == np.int8 else stored
        return turn(stored, {6: 8, 8: 6}.get(orientation, orientation))


def stored_shape(path: str | Path) -> tuple[int, ...]:
    """The shape of what :func:`read_stored` returns, from the file's header.

    Raises:
        CorruptImage: the file is not a TIFF, or has too many pixels.
        UserError: it has several pages.
    """
    with tifffile.TiffFile(path) as tiff:
        shape: tuple[int, ...] = _single(path, tiff).shape
        return shape


def orientation_of(page: Any) -> int:
    """The orientation tag of a page, 1 to 8; 1 where there is none that is valid."""
    tag = page.tags.valueof(_ORIENTATION_TAG, 1)
    return tag if tag in range(1, 9) else 1


def stored_orientation(path: str | Path) -> int:
    """The orientation tag of a TIFF's first page, see :func:`orientation_of`."""
    with tifffile.TiffFile(path) as tiff:
        return orientation_of(tiff.pages.first)


def tiff_header(path: str | Path) -> tuple[int, int, int, int, Any]:
    """Height and width in pixels, channels, bits and orientation tag of a TIFF's first page.

    Raises:
        CorruptImage: the pixels are not 8- or 16-bit grey or RGB as they are stored, or too many.
    """
    with tifffile.TiffFile(path) as tiff:
        page = _checked(path, tiff)
        bits = 8 * np.dtype(page.dtype).itemsize
        return page.imagelength, page.imagewidth, page.samplesperpixel, bits, orientation_of(page)


def read_tiff(path: str | Path) -> npt.NDArray[Any]:
    """Decode a TIFF's first page as stored, with white as the largest value; parts that were left out are white.

    Returns:
        uint8 or uint16 (H, W) or (H, W, C), with straight alpha where it has any.

    Raises:
        CorruptImage: as for :func:`tiff_header`, or its parts claim to be longer than the file.
    """
    with tifffile.TiffFile(path) as tiff:
        page = _checked(path, tiff)
        page.nodata = 0 if page.photometric == _WHITE_IS_ZERO else np.iinfo(page.dtype).max
        pixels = _pixels(path, tiff, page)
        if page.axes.startswith("S"):
            pixels = np.moveaxis(pixels, 0, -1)
        if page.photometric == _WHITE_IS_ZERO:
            pixels = np.invert(pixels)
        if is_premultiplied(page):
            pixels = straight(pixels)
    return np.ascontiguousarray(pixels)


def _checked(path: str | Path, tiff: tifffile.TiffFile) -> Any:
    """The first page of a file, if it may be read as an image."""
    page = _bounded(path, tiff)
    if page.dtype not in (np.uint8, np.uint16) or page.samplesperpixel > 4:
        raise CorruptImage(
            str(path), f"{counted(page.samplesperpixel, 'channel')} of {page.dtype}, not 8- or 16-bit RGB"
        )
    refuse_colors(path, page)
    refuse_stack(path, tiff)
    return page


def _single(path: str | Path, tiff: tifffile.TiffFile) -> Any:
    """The only page of a file."""
    page = _bounded(path, tiff)
    # An ImageJ stack may have one header for all of its pages.
    pages = max(len(tiff.pages), math.prod(tiff.series[0].shape) // max(math.prod(page.shape), 1))
    if pages > 1:
        raise UserError(f"{path} has {pages} pages, not one label map; give one page with a number for each object")
    return page


def _bounded(path: str | Path, tiff: tifffile.TiffFile) -> Any:
    page: Any = tiff.pages.first
    refuse_bomb(path, page.imagewidth, page.imagelength * page.imagedepth)
    refuse_bomb(path, page.tilewidth, page.tilelength * page.tiledepth)
    return page


def _pixels(path: str | Path, tiff: tifffile.TiffFile, page: Any) -> npt.NDArray[Any]:
    if max(page.databytecounts, default=0) > tiff.filehandle.size:
        raise CorruptImage(str(path), "it claims more bytes than it has; copy it again")
    pixels: npt.NDArray[Any] = page.asarray()
    return pixels
