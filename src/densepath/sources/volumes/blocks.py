"""Volumes in blocks of 32 x 32 x 32 voxels: a box of one is a few contiguous reads.

Blocks follow each other along x, then y, then z; those at the far borders have only the voxels that are left. So the
file has no padding, and a row of blocks starts at a place that is known from the volume's size.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
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
    stored: npt.NDArray[Any], size: Sequence[int], low: Sequence[int], high: Sequence[int], out: npt.NDArray[Any]
) -> None:
    """Copy a box of an array.

    Args:
        stored: the values of all blocks, one after another.
        size: the array's D, H, W.
        low, high: the box's low corner (included) and high corner (excluded).
        out: (d, h, w), the box.
    """
    _, height, width = size
    slabs, rows, columns = (_spans(*axis) for axis in zip(size, low, high, strict=True))
    for z, deep, from_z, to_z in slabs:
        for y, high_, from_y, to_y in rows:
            start, area = z * height * width + deep * y * width, deep * high_
            for x, wide, from_x, to_x in columns:
                first = start + area * x
                block = stored[first : first + area * wide].reshape(deep, high_, wide)
                out[to_z, to_y, to_x] = block[from_z, from_y, from_x]


def touched(low: Sequence[int], high: Sequence[int]) -> int:
    """The number of values in the blocks that a box meets, at most."""
    deep, high_, wide = (-(-b // BLOCK) - a // BLOCK for a, b in zip(low, high, strict=True))
    return BLOCK**3 * deep * high_ * wide


def _spans(side: int, low: int, high: int) -> list[tuple[int, int, slice, slice]]:
    """The blocks of an axis that a range meets: start, length, and the range's part in the block and in the box."""
    found = []
    for start in range(low // BLOCK * BLOCK, high, BLOCK):
        end = min(start + BLOCK, side)
        first, last = max(start, low), min(end, high)
        found.append((start, end - start, slice(first - start, last - start), slice(first - low, last - low)))
    return found
