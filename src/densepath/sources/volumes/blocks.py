"""Volumes in blocks of 32 x 32 x 32 voxels: a box of one is a few contiguous reads.

Blocks follow each other along x, then y, then z; those at the far borders have only the voxels that are left. So the
file has no padding, and a row of blocks starts at a place that is known from the volume's size.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from io import FileIO
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

BLOCK = 32


def write_blocks(file: BinaryIO | None, values: npt.NDArray[Any]) -> int:
    """Append an array (D, H, W) to a file, or to none.

    Returns:
        The CRC-32 of the blocks.
    """
    crc = 0
    for z, y, x in np.ndindex(*(-(-side // BLOCK) for side in values.shape)):
        block = np.ascontiguousarray(values[tuple(slice(BLOCK * place, BLOCK * (place + 1)) for place in (z, y, x))])
        crc = zlib.crc32(block.data, crc)
        if file is not None:
            file.write(block.data)
    return crc


def read_box(
    file: FileIO,
    offset: int,
    size: Sequence[int],
    low: Sequence[int],
    high: Sequence[int],
    out: npt.NDArray[Any],
) -> None:
    """Read a box of an array.

    It is read, not mapped: to touch a mapped file that was truncated would kill the process, and all that was ever
    touched of it would count as memory in use.

    Args:
        file: open for reading, without a buffer.
        offset: the byte at which the array begins.
        size: the array's D, H, W.
        low, high: the box's low corner (included) and high corner (excluded).
        out: (d, h, w), the box, of the array's type.

    Raises:
        EOFError: the file is truncated.
    """
    _, height, width = size
    spans = [_spans(*axis) for axis in zip(size, low, high, strict=True)]
    across = spans[2]
    left, right = across[0][0], across[-1][0] + across[-1][1]
    buffer = np.empty(BLOCK * BLOCK * (right - left), out.dtype)
    for z, deep, from_z, to_z in spans[0]:
        for y, high_, from_y, to_y in spans[1]:
            area = deep * high_
            run = buffer[: area * (right - left)]
            start = z * height * width + deep * y * width + area * left
            if _read(file, run, offset + run.itemsize * start) < run.nbytes:
                raise EOFError
            for x, wide, from_x, to_x in across:
                block = run[area * (x - left) : area * (x - left + wide)].reshape(deep, high_, wide)
                out[to_z, to_y, to_x] = block[from_z, from_y, from_x]


def _spans(side: int, low: int, high: int) -> list[tuple[int, int, slice, slice]]:
    """The blocks of an axis that a range meets: start, length, and the range's part in the block and in the box."""
    found = []
    for start in range(low // BLOCK * BLOCK, high, BLOCK):
        end = min(start + BLOCK, side)
        first, last = max(start, low), min(end, high)
        found.append((start, end - start, slice(first - start, last - start), slice(first - low, last - low)))
    return found


def _read(file: FileIO, array: npt.NDArray[Any], place: int) -> int:
    """Fill an array from a place in a file. Returns the bytes read: a system may return fewer than asked for."""
    file.seek(place)
    view, done = array.data.cast("B"), 0
    while done < array.nbytes and (count := file.readinto(view[done:])):
        done += count
    return done
