"""Pixels with other channels and bits."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile

TO_16_BITS = 257  # 255 becomes 65535
MOST = 2**16 - 1  # the largest value of 16 bits
_FEWEST_BITS = 9  # of 16-bit files: up to 255 the window would be that of 8 bits
_RAW_GREY = re.compile(r"\b[1L];([24]?)(I?)")  # how Pillow names stored grey: L;4I has 4 bits, and 0 is white
_LUMA = (0.299, 0.587, 0.114)  # ITU-R 601-2, as Pillow converts color to grey


def upper_bits(pixels: npt.NDArray[np.uint16] | npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """8 bits of 8 or 16."""
    return (pixels if pixels.dtype == np.uint8 else pixels >> 8).astype(np.uint8)


def highest_of_bits(value: int) -> int:
    """The largest value with as many bits as ``value``, but at least 9: 4095 for 3000, whose pixels have 12 bits."""
    return int(2 ** max(value.bit_length(), _FEWEST_BITS) - 1)


def as_pixels(pixels: npt.NDArray[Any], channels: int, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Grey or RGB pixels (h, w, C) with other channels, and of 8 or 16 bits with other bits."""
    dtype = np.dtype(dtype)
    if pixels.dtype == np.uint16 and dtype == np.uint8:
        pixels = upper_bits(pixels)
    pixels = _as_channels(pixels, channels)
    return pixels.astype(np.uint16) * TO_16_BITS if pixels.dtype == np.uint8 and dtype == np.uint16 else pixels


def _as_channels(pixels: npt.NDArray[Any], channels: int) -> npt.NDArray[Any]:
    if pixels.shape[2] == 1 and channels == 3:
        return np.repeat(pixels, 3, axis=2)
    if pixels.shape[2] == 3 and channels == 1:
        if pixels.dtype == np.uint8:
            return np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).convert("L"))[..., None]
        grey = pixels @ np.array(_LUMA)
        return (grey if pixels.dtype.kind == "f" else np.rint(grey)).astype(pixels.dtype)[..., None]
    return pixels


def with_channels(pixels: npt.NDArray[np.uint16], channels: int) -> npt.NDArray[np.uint16]:
    """The pixels of a 16-bit file, perhaps with alpha, as grey or RGB."""
    stored = pixels.shape[2]
    if channels == 1 and stored <= 2:
        return pixels[..., :1]
    return as_pixels(on_white(pixels) if stored in (2, 4) else pixels, channels, np.uint16)


def on_white(pixels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Pixels (h, w, C) of 8 or 16 bits, the last channel of which is alpha, blended with white."""
    most = np.iinfo(pixels.dtype).max
    if (pixels[..., -1] == most).all():
        return np.ascontiguousarray(pixels[..., :-1])
    if pixels.dtype == np.uint8 and pixels.shape[-1] == 4:  # gives the same, faster
        image = Image.fromarray(pixels)
        return np.asarray(Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB"))
    color, alpha = np.split(pixels.astype(np.uint32), [-1], axis=-1)  # the square of the largest value fits
    return ((color * alpha + most * (most - alpha) + most // 2) // most).astype(pixels.dtype)


def straight(pixels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Pixels (h, w, C), whose colors were multiplied by alpha, the last channel, as if they were not."""
    most = np.iinfo(pixels.dtype).max
    color, alpha = np.split(pixels.astype(np.uint32), [-1], axis=-1)
    divided = (np.minimum(color, alpha) * most + alpha // 2) // np.maximum(alpha, 1)
    return np.concatenate([divided, alpha], axis=-1).astype(pixels.dtype)


def stored_numbers(image: ImageFile.ImageFile) -> npt.NDArray[Any]:
    """The numbers of a grey image as its file has them, (H, W); the image is opened, but not yet loaded.

    Pillow stretches 2 and 4 bits to 8, and inverts TIFFs in which 0 is white. Others are as Pillow reads them.
    """
    grey = _RAW_GREY.search(str(image.tile[0].args)) if image.tile else None
    bits, inverted = grey.groups() if grey else ("", "")
    pixels = np.asarray(image)
    if inverted:
        pixels = np.invert(pixels)
    return pixels // (255 // (2 ** int(bits) - 1)) if bits else pixels
