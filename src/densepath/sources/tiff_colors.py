"""The colors that a TIFF stores: which are grey or RGB when they are decoded, and which channels are transparency."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from densepath.sources.corrupt import CorruptImage

SEPARATE = 2  # PlanarConfiguration
_GREY, _RGB, _YCBCR = (0, 1), 2, 6  # PhotometricInterpretation
_JPEG = (6, 7)  # compressions of which tifffile converts YCbCr to RGB
_APERIO_YCBCR = 33003  # a compression of YCbCr, whatever else is said
_PREMULTIPLIED, _TRANSPARENCY = 1, {1, 2, 999}  # ExtraSamples; 999 is Corel's


class UnknownStorage(CorruptImage):
    """A TIFF that stores its pixels in a way that is unknown here; OpenSlide may know it."""


def refuse_channels(path: str | Path, photometric: int, channels: int, extra: Sequence[int]) -> None:
    """Refuse channels besides grey or color that are not marked as transparency.

    Args:
        path: the file.
        photometric, channels, extra: the tags PhotometricInterpretation, SamplesPerPixel and ExtraSamples.

    Raises:
        CorruptImage: there are some.
    """
    known = 1 if photometric in _GREY else channels if photometric != _RGB else 3
    unmarked = channels > known and (photometric in _GREY or bool(extra))
    if unmarked and not set(extra) & _TRANSPARENCY:
        raise CorruptImage(
            str(path), f"of its {channels} channels the last is not marked as transparency; give grey or RGB images"
        )


def has_plain_colors(page: Any, converted: Sequence[int] = _JPEG) -> bool:
    """Whether the pixels that are decoded of a page are grey or RGB: those of palettes, CMYK and most YCbCr are not.

    Args:
        page: of tifffile.
        converted: compressions of which the decoder converts YCbCr to RGB, if its channels are stored together.
    """
    planes = page.samplesperpixel > 1 and page.planarconfig == SEPARATE
    ycbcr = page.photometric == _YCBCR or page.compression == _APERIO_YCBCR
    if ycbcr and (planes or page.compression not in converted):
        return False
    return page.photometric in (*_GREY, _RGB, _YCBCR)


def is_padded(page: Any) -> bool:
    """Whether a page is RGB with a fourth channel that the file does not mark as transparency."""
    extra = page.extrasamples
    return page.photometric == _RGB and page.samplesperpixel == 4 and bool(extra) and not set(extra) & _TRANSPARENCY


def refuse_colors(path: str | Path, page: Any, converted: Sequence[int] = _JPEG, padded: bool = False) -> None:
    """Refuse a page that is not grey or RGB when it is decoded, or has channels besides that are not transparency.

    Args:
        path: the file.
        page, converted: as for :func:`has_plain_colors`.
        padded: accept a fourth channel, which is ignored.

    Raises:
        CorruptImage: it is or has.
    """
    if not has_plain_colors(page, converted):
        colors = getattr(page.photometric, "name", page.photometric)
        kind = CorruptImage if page.planarconfig == SEPARATE else UnknownStorage  # OpenSlide does not know planes
        raise kind(str(path), f"its colors are stored as {colors} and cannot be converted; save it as RGB")
    if not (padded and is_padded(page)):
        refuse_channels(path, page.photometric, page.samplesperpixel, page.extrasamples)


def is_premultiplied(page: Any) -> bool:
    """Whether the colors of a page's pixels were multiplied by their alpha, the last channel."""
    return page.samplesperpixel in (2, 4) and page.extrasamples[-1:] == (_PREMULTIPLIED,)
