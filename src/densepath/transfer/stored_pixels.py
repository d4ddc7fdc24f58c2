"""An image that a user gives in a notebook, as a trained network takes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from densepath.core.errors import UserError, counted
from densepath.sources.conversion import as_pixels
from densepath.sources.decode import read_image
from densepath.sources.pixel_source import PixelSpec


def stored_pixels(image: str | Path | npt.NDArray[Any], spec: PixelSpec, max_side: int, what: str) -> npt.NDArray[Any]:
    """The pixels (*size, C) of an image.

    Args:
        image: a file, or stored pixels (*size, C), or (*size) of a grey image or a volume.
        spec: what the network takes.
        max_side: files with longer sides are reduced.
        what: the network, for messages: "classifier".

    Raises:
        UserError: it does not fit the network.
        CorruptImage: the file cannot be read.
    """
    if isinstance(image, str | Path):
        image = read_image(str(image), max_side, spec.channels, spec.image_dtype)
    pixels = np.asarray(image)
    if pixels.ndim == spec.ndim:
        pixels = pixels[..., None]
    if spec.ndim == 2 and pixels.ndim == 3 and {pixels.shape[2], spec.channels} <= {1, 3}:
        pixels = as_pixels(pixels, spec.channels, pixels.dtype)
    if pixels.ndim != spec.ndim + 1 or pixels.shape[-1] != spec.channels:
        raise UserError(
            f"an image of the shape {pixels.shape} does not fit a {what} of images with {spec.ndim} dimensions "
            f"and {counted(spec.channels, 'channel')}"
        )
    return pixels
