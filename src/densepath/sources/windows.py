"""The window of images without a standard range of values: volumes."""

from __future__ import annotations

import numpy as np

from densepath.core.errors import UserError, counted
from densepath.core.spacing import some_values
from densepath.sources.corrupt import CorruptImage
from densepath.sources.pixel_source import PixelSource

_NUMBERS = 2**18  # values of each that are used
_PERCENTILES = (0.5, 99.5)  # nnU-Net's, for CT


def percentile_window(images: PixelSource, most: int = 8) -> tuple[float, float]:
    """The range of stored values in a sample of the images, without the lowest and the highest 0.5%.

    Args:
        images: the source; its ``spec`` is not used.
        most: how many images are read, evenly spread over the source.

    Raises:
        UserError: none of them can be read, or nearly all values are equal.
    """
    count = min(most, len(images))
    found = []
    for position in (k * len(images) // count for k in range(count)):
        try:
            found.append(some_values(images.read(position), _NUMBERS))
        except CorruptImage:
            continue
    if not found:
        raise UserError(f"none of {counted(count, 'image')} can be read; check the files")
    low, high = (float(value) for value in np.percentile(np.concatenate(found), _PERCENTILES))
    if low == high:
        raise UserError(f"nearly all values of the images are {low:g}; give their range with --window")
    return low, high
