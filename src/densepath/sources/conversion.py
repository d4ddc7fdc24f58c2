"""Pixels with other channels and bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

TO_16_BITS = 257  # 255 becomes 65535
_LUMA = (0.299, 0.587, 0.114)  # ITU-R 601-2, as Pillow converts color to grey


def upper_bits(pixels: npt.NDArray[np.uint16] | npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """8 bits of 8 or 16."""
    return (pixels if pixels.dtype == np.uint8 else pixels >> 8).astype(np.uint8)


def as_pixels(pixels: npt.NDArray[Any], channels: int, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Grey or RGB pixels (h, w, C) of 8 or 16 bits with other channels and bits."""
    if pixels.dtype != dtype and pixels.dtype in (np.uint8, np.uint16):
        pixels = upper_bits(pixels) if np.dtype(dtype) == np.uint8 else pixels.astype(np.uint16) * TO_16_BITS
    if pixels.shape[2] == 1 and channels == 3:
        return np.repeat(pixels, 3, axis=2)
    if pixels.shape[2] == 3 and channels == 1:
        if pixels.dtype == np.uint8:
            return np.asarray(Image.fromarray(pixels).convert("L"))[..., None]
        return np.rint(pixels @ np.array(_LUMA)).astype(pixels.dtype)[..., None]
    return pixels


def with_channels(pixels: npt.NDArray[np.uint16], channels: int) -> npt.NDArray[np.uint16]:
    """The pixels of a 16-bit file, perhaps with alpha, as grey or RGB."""
    stored = pixels.shape[2]
    if channels == 1 and stored <= 2:
        return pixels[..., :1]
    color = pixels[..., : stored - 1 if stored in (2, 4) else stored]
    if stored in (2, 4):
        alpha = pixels[..., -1:] / np.float64(65535)
        color = np.rint(color * alpha + 65535 * (1 - alpha)).astype(np.uint16)
    return as_pixels(color, channels, np.uint16)
