"""Decoding a whole source once, into memory, when it fits."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from densepath.core.errors import UserError
from densepath.core.system import available_memory, first_on_node, processes_on_node
from densepath.sources.corrupt import CorruptLog
from densepath.sources.image_files import ImageFiles
from densepath.sources.packed import PackedTiles
from densepath.sources.read_all import read_all

SHARE = 0.25  # of the available memory, for the caches of all processes on this machine together
_SAMPLE = 64


def estimated_bytes(files: ImageFiles) -> int:
    """The approximate size of the decoded images in bytes, from a sample of their headers."""
    sizes = files.sample_sizes(_SAMPLE).values()
    pixels = round(sum(height * width for height, width in sizes) / len(sizes) * len(files))
    return pixels * files.channels * files.dtype.itemsize


def decode_if_it_fits(files: ImageFiles, all_of_them: bool = False) -> PackedTiles | None:
    """Decode all images into memory if they take less than ``SHARE`` of it. Arguments and errors as below."""
    budget = int(available_memory() * SHARE / processes_on_node())
    expected = estimated_bytes(files)
    return _decode(files, expected, budget, all_of_them) if expected <= budget else None


def decode_to_memory(files: ImageFiles, all_of_them: bool = False) -> PackedTiles:
    """Decode all images into memory.

    Args:
        files: the images.
        all_of_them: refuse images that a later attempt may read, instead of counting them among the corrupt ones.

    Raises:
        UserError: they don't fit, or too many images are corrupt.
    """
    expected, available = estimated_bytes(files), available_memory() // processes_on_node()
    decoded = _decode(files, expected, available, all_of_them) if expected <= available else None
    if decoded is None:
        raise UserError(
            f"the decoded images take about {expected / 2**30:.1f} GiB in each process and {available / 2**30:.1f} are "
            "available; pack them with `densepath data pack`, or use cache auto or none"
        )
    return decoded


def _decode(files: ImageFiles, expected: int, budget: int, all_of_them: bool) -> PackedTiles | None:
    """Decode all images into one block; None if they take more bytes than ``budget``."""
    corrupt = CorruptLog(len(files), quiet=not first_on_node())
    dtype = np.dtype(np.uint16 if files.dtype == torch.uint16 else np.uint8)
    buffer: npt.NDArray[Any] = np.empty(expected // dtype.itemsize, dtype)
    sizes = np.zeros((len(files), 2), np.int32)
    offsets = np.zeros(len(files), np.int64)
    end = 0
    for position, image in enumerate(read_all(files, corrupt, "decoding", all_of_them=all_of_them)):
        offsets[position] = end
        if image is None:
            continue
        if (end + image.size) * dtype.itemsize > budget:
            return None
        if end + image.size > buffer.size:
            buffer.resize(end + image.size + buffer.size // 8, refcheck=False)
        buffer[end : end + image.size] = image.reshape(-1)
        sizes[position] = image.shape[:2]
        end += image.size
    buffer.resize(end, refcheck=False)
    pixels, table, starts = (torch.from_numpy(x) for x in (buffer, sizes, offsets))
    return PackedTiles(pixels, table, starts, files.paths, corrupt.found, spec=files.spec)
