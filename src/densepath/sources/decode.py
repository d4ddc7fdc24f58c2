"""Decoding an image file of any mode to grey or RGB pixels; the error for an unreadable file gives the reason."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, JpegImagePlugin, PngImagePlugin, TiffImagePlugin, UnidentifiedImageError

from densepath.core.errors import errors_as
from densepath.sources.conversion import TO_16_BITS, on_white, upper_bits, with_channels
from densepath.sources.corrupt import CorruptImage
from densepath.sources.dicom_image import DICOM_START, dicom_header, is_dicom, read_dicom
from densepath.sources.dicom_image import SUFFIXES as DICOM_SUFFIXES
from densepath.sources.expansion import check_scans, still_webp
from densepath.sources.patience import patient
from densepath.sources.tiff import TIFF_STARTS, pillow_corrupts, read_tiff, refuse_bomb, tiff_header, too_large

FORMATS = ("PNG", "JPEG", "TIFF", "WEBP", "BMP", "DIB")
_PNG_START = b"\x89PNG\r\n\x1a\n"
_PNG_NOTES = (b"iCCP", b"tEXt", b"zTXt", b"iTXt")
_PHOTOMETRIC_TAG, _ORIENTATION_TAG = 262, 274
_WHITE_IS_ZERO = 0

Image.init()  # Pillow loads its plugins at first use, which is not thread-safe


@dataclass(frozen=True)
class Header:
    """The properties of an image file, without its pixels.

    Args:
        height, width: in pixels, as :func:`read_image` returns them.
        grey: whether it has one channel, perhaps with alpha.
        bits: bits of a channel, 8 or 16; palettes and single bits count as 8.
        orientation: the orientation tag (EXIF, TIFF), 1 to 8; 1 is as stored.
        indexed: whether its values are indices of a palette.
        factor: by which it is reduced.
    """

    height: int
    width: int
    grey: bool
    bits: int
    orientation: int = 1
    indexed: bool = False
    factor: int = 1

    @property
    def viewed(self) -> tuple[int, int]:
        """Height and width as a viewer shows the image, see :func:`densepath.sources.tiff.turn`."""
        return (self.width, self.height) if self.orientation > 4 else (self.height, self.width)


@patient
def read_image(
    path: str | Path, max_side: int | None = None, channels: int = 3, dtype: npt.DTypeLike = np.uint8
) -> npt.NDArray[Any]:
    """Decode a PNG, JPEG, TIFF, WebP or BMP file, or a radiograph in a DICOM file.

    RGB: grey, palette and CMYK images are converted; transparent pixels are blended with white, the background of a
    slide. Grey: color is converted to luma, and the alpha channel of grey is dropped. 8 bits: of 16 bits, the upper 8
    are kept (value // 256: the full range is mapped, regardless of the range that the image uses). 16 bits: 8-bit
    values are multiplied by 257. An orientation tag (EXIF, TIFF) is ignored: pixels are returned as stored. Of the
    frames of an animation the first is read, and of the pages of a TIFF if none of the others has its size.

    Args:
        path: the file; its content decides the format, not its suffix.
        max_side: reduce an image whose longer side is larger (pixels) by the smallest integer factor that makes it fit.
            Blocks of pixels are averaged; for JPEG, powers of two of the factor are applied while decoding.
        channels: 3 for RGB, 1 for grey.
        dtype: uint8 or uint16.

    Returns:
        (H, W, channels) of ``dtype``.

    Raises:
        CorruptImage: missing, truncated, foreign, signed, 32-bit or floating-point pixels, a stack of pages, or more
            than ``MAX_PIXELS`` pixels (refused before memory is allocated).
    """
    with errors_as(lambda error: CorruptImage(str(path), _reason(error))), _open(path) as image:
        factor = _factor(image.size, max_side)
        if np.dtype(dtype) == np.uint16 and _bits(image) == 16:
            return _reduce(with_channels(_read_16_bits(path, image), channels), factor)
        if isinstance(image, JpegImagePlugin.JpegImageFile):
            if "progressive" in image.info:
                check_scans(path, image.width * image.height)
            shrink = next(power for power in (8, 4, 2, 1) if factor % power == 0 and min(image.size) >= power)
            image.draft(None, (image.width // shrink, image.height // shrink))
            factor //= shrink
        picture = to_grey(image) if channels == 1 else to_rgb(image)
        pixels = np.array(picture.reduce(factor) if factor > 1 else picture)
        pixels = pixels[..., None] if channels == 1 else pixels
        return pixels if np.dtype(dtype) == np.uint8 else pixels.astype(np.uint16) * TO_16_BITS


@patient
def read_header(path: str | Path, max_side: int | None = None) -> Header:
    """The properties of what :func:`read_image` returns, from the file's header only.

    Raises:
        CorruptImage: as for :func:`read_image`, as far as the header shows it.
    """
    with errors_as(lambda error: CorruptImage(str(path), _reason(error))), _open(path) as image:
        factor = _factor(image.size, max_side)
        height, width = -(-image.height // factor), -(-image.width // factor)
        indexed = image.mode == "P"
        return Header(height, width, _is_grey(image), _bits(image), _orientation(image), indexed, factor)


def read_size(path: str | Path, max_side: int | None = None) -> tuple[int, int]:
    """The (height, width) in pixels of what :func:`read_image` returns, from the file's header only.

    Raises:
        CorruptImage: as for :func:`read_header`.
    """
    header = read_header(path, max_side)
    return header.height, header.width


class _Unread(Image.Image):
    """A file that Pillow does not read: its size is known, its pixels are read on request.

    Args:
        path: the file.
        header: reads its height, width, channels, bits and orientation.
        read: reads its pixels (H, W) or (H, W, C).
    """

    def __init__(
        self,
        path: str | Path,
        header: Callable[[str | Path], tuple[int, int, int, int, int]],
        read: Callable[[str | Path], npt.NDArray[Any]],
    ) -> None:
        super().__init__()
        height, width, self.channels, self.bits, self.orientation = header(path)
        refuse_bomb(path, width, height)
        self._size, self._path, self._read = (width, height), path, read

    def pixels(self) -> npt.NDArray[Any]:
        return self._read(self._path)


def _open(path: str | Path) -> Image.Image:
    """Open with Pillow, with tifffile for TIFFs that Pillow does not read or would change, or as DICOM."""
    if str(path).lower().endswith(DICOM_SUFFIXES):
        return _Unread(path, dicom_header, read_dicom)
    try:
        image: Image.Image = Image.open(still_webp(path) or path, formats=FORMATS)
    except UnidentifiedImageError:
        with open(path, "rb") as file:
            start = file.read(DICOM_START)
        if not start:
            raise CorruptImage(str(path), "the file is empty") from None
        if is_dicom(start):
            return _Unread(path, dicom_header, read_dicom)
        if start[:4] not in TIFF_STARTS:
            raise CorruptImage(str(path), "not an image, or truncated in its first bytes") from None
        return _Unread(path, tiff_header, read_tiff)
    except Image.DecompressionBombError:
        raise too_large(path) from None
    except ValueError:  # Pillow refuses PNG files with notes of over 1 MiB
        image = Image.open(without_notes(path), formats=("PNG",))
    refuse_bomb(path, *image.size)
    if isinstance(image, TiffImagePlugin.TiffImageFile) and pillow_corrupts(path, image):
        image.close()
        return _Unread(path, tiff_header, read_tiff)
    return image


def without_notes(path: str | Path) -> io.BytesIO:
    """A PNG file without its color profile and its texts, which the pixels do not need."""
    data = Path(path).read_bytes()
    kept, place = [data[:8]], 8
    while data.startswith(_PNG_START) and place < len(data):
        end = place + 12 + int.from_bytes(data[place : place + 4], "big")
        if data[place + 4 : place + 8] not in _PNG_NOTES:
            kept.append(data[place:end])
        place = end
    return io.BytesIO(b"".join(kept))


def _raw_mode(image: Image.Image) -> str:
    """The mode in which Pillow unpacks the file, e.g. "RGB;16B": some 16-bit files are reduced to 8 bits."""
    tiles = getattr(image, "tile", None) or [None]
    arguments: Any = getattr(tiles[0], "args", "")
    first = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return first if isinstance(first, str) else ""


def _bits(image: Image.Image) -> int:
    if isinstance(image, _Unread):
        return image.bits
    return 16 if image.mode.startswith("I;16") or ";16" in _raw_mode(image) else 8


def _orientation(image: Image.Image) -> int:
    """The orientation tag, 1 to 8; 1 where there is none that is valid."""
    tag: Any
    if isinstance(image, _Unread):
        tag = image.orientation
    elif isinstance(image, TiffImagePlugin.TiffImageFile):
        tag = image.tag_v2.get(_ORIENTATION_TAG)
    else:
        tag = None
        with suppress(Exception):  # corrupt EXIF data do not matter to the pixels
            tag = image.getexif().get(_ORIENTATION_TAG)
    return tag if tag in range(1, 9) else 1


def _is_grey(image: Image.Image) -> bool:
    if isinstance(image, _Unread):
        return image.channels <= 2
    # Pillow opens 16-bit grey with alpha as RGBA
    return image.mode in ("1", "L", "LA") or image.mode.startswith("I;16") or _raw_mode(image).startswith("LA")


def _factor(size: tuple[int, int], max_side: int | None) -> int:
    return 1 if max_side is None else -(-max(size) // max_side)


def _read_16_bits(path: str | Path, image: Image.Image) -> npt.NDArray[np.uint16]:
    """(H, W, C) as stored: grey or RGB, perhaps with alpha."""
    if isinstance(image, _Unread):
        pixels = image.pixels()
    elif isinstance(image, TiffImagePlugin.TiffImageFile):
        pixels = read_tiff(path)
    elif isinstance(image, PngImagePlugin.PngImageFile) and not image.mode.startswith("I;16"):
        from torchvision.io import ImageReadMode, decode_image, read_file  # not needed for other files

        pixels = decode_image(read_file(str(path)), ImageReadMode.UNCHANGED).permute(1, 2, 0).numpy()
    else:
        pixels = np.asarray(image)
    return pixels.reshape(*pixels.shape[:2], -1).astype(np.uint16)


def _reduce(pixels: npt.NDArray[np.uint16], factor: int) -> npt.NDArray[np.uint16]:
    """Average blocks of pixels; blocks at the right and lower edges may be smaller."""
    if factor == 1:
        return np.ascontiguousarray(pixels)
    rows, columns = (np.arange(0, n, factor) for n in pixels.shape[:2])
    sums = np.add.reduceat(np.add.reduceat(pixels, rows, axis=0, dtype=np.float64), columns, axis=1)
    high, wide = (np.minimum(factor, n - starts) for n, starts in zip(pixels.shape, (rows, columns), strict=False))
    return np.rint(sums / (high[:, None] * wide)[..., None]).astype(np.uint16)


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode as RGB of 8 bits, blended with white."""
    if isinstance(image, _Unread):
        image = Image.fromarray(upper_bits(image.pixels()))
    if image.mode in ("I", "F"):
        raise ValueError("32-bit or floating-point pixels have no agreed range; convert the image to 8 or 16 bits")
    if image.mode.startswith("I;16"):
        pixels = upper_bits(np.asarray(image))
        # Pillow inverts 8-bit TIFFs of this kind itself, but not 16-bit ones
        tags = getattr(image, "tag_v2", {})
        inverted = tags.get(_PHOTOMETRIC_TAG) == _WHITE_IS_ZERO
        return Image.fromarray(255 - pixels if inverted else pixels).convert("RGB")
    if image.has_transparency_data:
        return Image.fromarray(on_white(np.asarray(image.convert("RGBA"))))
    return image.convert("RGB")


def to_grey(image: Image.Image) -> Image.Image:
    """An image of any mode as grey of 8 bits."""
    if _is_grey(image) and not image.mode.startswith("I;16"):
        plain = Image.fromarray(upper_bits(image.pixels())) if isinstance(image, _Unread) else image
        return plain.convert("L")  # without its alpha channel
    return to_rgb(image).convert("L")


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "the file is missing"
    if isinstance(error, PermissionError):
        return f"the file cannot be read ({error.strerror}); check its permissions"
    if isinstance(error, LookupError):  # its text is a bare key or number
        return "cannot be decoded (parts of the file are missing)"
    text = (getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()[0]
    return f"cannot be decoded ({text})"
