"""An image that a user gives in a notebook, as a trained network takes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor

from densepath.core.errors import UserError, errors_as
from densepath.sources.conversion import as_pixels, on_white
from densepath.sources.decode import read_header, read_image, to_grey, to_rgb
from densepath.sources.other_bits import FILE_WINDOWS, may_be_shares, warn_of_pixels
from densepath.sources.pixel_source import PixelSpec
from densepath.sources.volumes.prepare import percentile_window

InMemory: TypeAlias = npt.NDArray[Any] | Tensor | Image.Image
Picture: TypeAlias = InMemory | str | Path
_FILE_DTYPES = (np.uint8, np.uint16)
_MOST_PIXELS = 2**24  # of a file that is looked at


def stored_pixels(image: Picture, spec: PixelSpec, max_side: int, own_window: bool) -> npt.NDArray[Any]:
    """The pixels (*size, C) of an image in a file or in memory.

    Args:
        image: a file, or what :func:`pixels_in_memory` takes.
        spec: what the network takes.
        max_side: files with longer sides are reduced.
        own_window: as for :func:`pixels_in_memory`.

    Raises:
        UserError: it does not fit the network.
        CorruptImage: the file cannot be read.
    """
    if not isinstance(image, str | Path):
        return pixels_in_memory(image, spec, own_window)
    if spec.ndim != 2:
        raise UserError("files of volumes are read by densepath predict; give an array")
    if read_header(image).bits != spec.file_bits:
        warn_of_file(image, spec)
    return pixels_in_memory(read_image(str(image), max_side, spec.channels, spec.image_dtype), spec)


def pixels_in_memory(image: InMemory, spec: PixelSpec, own_window: bool = False) -> npt.NDArray[Any]:
    """The pixels (*size, C) of an image in memory. Grey, RGB, transparency, 8 and 16 bits are converted as in files.

    Args:
        image: an array (*size, C), or (*size) of one channel; a tensor of these or (C, *size); or an image of Pillow.
            Values that files do not have, e.g. floats, are those of a packed store; a network of files takes none.
        spec: what the network takes.
        own_window: whether each volume of the training has its own window. Then floats whose own window is within -1
            to 2 are taken as shares, which a store of volumes reads, and other volumes become shares of their own
            window.

    Raises:
        UserError: it does not fit the network.
    """
    of_files = spec.ndim == 2 and spec.channels in (1, 3)
    if isinstance(image, Tensor):
        pixels = (image.float() if image.is_floating_point() else image).numpy(force=True)
    elif isinstance(image, Image.Image):
        if spec.ndim != 2:
            raise UserError("an image of Pillow is not a volume; give an array of depth x height x width")
        pixels = _of_pillow(image, spec) if of_files else np.asarray(image)
    elif hasattr(image, "__array__"):
        pixels = np.asarray(image)
    else:
        raise UserError(f"an image is {type(image).__name__}; give an array, an image of Pillow, or a file")
    pixels = pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
    as_file = of_files and pixels.dtype in _FILE_DTYPES
    channels = ((1, 3, 4) if as_file else (1, 3)) if of_files else (spec.channels,)
    pixels = pixels[..., None] if pixels.ndim == spec.ndim else pixels
    if isinstance(image, Tensor) and pixels.ndim == spec.ndim + 1 and pixels.shape[-1] not in channels:
        pixels = np.moveaxis(pixels, 0, -1)
    _check(pixels, spec, channels, as_file or not (of_files and spec.window in FILE_WINDOWS))
    if as_file and spec.window in FILE_WINDOWS:
        warn_of_pixels(pixels, spec)
    if as_file and pixels.shape[2] == 4:
        pixels = on_white(pixels)
    if own_window:
        return np.stack([_shares(channel) for channel in np.moveaxis(pixels, -1, 0)], axis=-1)
    # A window of its own is that of the values as they are stored, unless it is of files with known bits.
    known = spec.window in FILE_WINDOWS or (as_file and spec.bits is not None)
    dtype = spec.image_dtype if known else pixels.dtype
    return as_pixels(pixels, spec.channels, dtype) if of_files else pixels


def warn_of_file(path: str | Path, spec: PixelSpec) -> None:
    """Warn of an image file whose values mean something else to a network, see
    :func:`~densepath.sources.other_bits.warn_of_pixels`.

    Raises:
        CorruptImage: it cannot be read.
    """
    header = read_header(path)
    other, small = header.bits != spec.file_bits, header.height * header.width <= _MOST_PIXELS
    if small and (other or (header.bits == 16 and spec.window in FILE_WINDOWS)):
        warn_of_pixels(read_image(path, None, spec.channels, np.uint8 if header.bits == 8 else np.uint16), spec)


def _shares(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A volume (D, H, W) as shares of its own window, as float32; one of shares, or a crop of it, as it is."""
    low, high = percentile_window(values)
    if values.dtype.kind == "f" and may_be_shares(low, high):
        return values
    return ((values.astype(np.float64) - low) / (high - low)).astype(np.float32)


def _of_pillow(image: Image.Image, spec: PixelSpec) -> npt.NDArray[Any]:
    """The pixels of an image of Pillow, as those of its file; 32-bit ones as they are."""
    with errors_as(lambda error: UserError(f"an image of Pillow of the mode {image.mode} cannot be read ({error})")):
        if image.mode in ("I", "F") or (image.mode.startswith("I;16") and spec.image_dtype is np.uint16):
            return np.asarray(image)
        return np.asarray(to_rgb(image) if spec.channels == 3 else to_grey(image))


def _check(pixels: npt.NDArray[Any], spec: PixelSpec, channels: tuple[int, ...], takes: bool) -> None:
    """Raise UserError for pixels that a network cannot take; ``takes`` is whether it takes their dtype."""
    dtype, shape = pixels.dtype, list(pixels.shape)
    if not takes or dtype.kind not in "uif" or len(shape) != spec.ndim + 1 or shape[-1] not in channels:
        axes = "height x width" if spec.ndim == 2 else "depth x height x width"
        numbers = "numbers" if takes else np.dtype(spec.image_dtype)
        raise UserError(f"an image is {dtype} {shape}; give {numbers} of {axes} x {spec.channels}")
    if not pixels.size:
        raise UserError(f"an image has no pixels: {shape}")
    if dtype.kind == "f" and not np.isfinite(pixels).all():
        raise UserError("an image has pixels that are NaN or Inf; replace them")
