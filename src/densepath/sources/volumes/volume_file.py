"""One file of a store: a header of JSON, the channels of a volume as blocks of int16, and its labels."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from densepath.core.files import atomic_write
from densepath.sources.corrupt import CorruptImage, decoding
from densepath.sources.volumes.blocks import write_blocks

FORMAT, VERSION, SUFFIX = "densepath-volume", 1, ".vol"
_PAGE = 4096  # the voxels start at a multiple of it


def write_volume(
    path: Path,
    facts: Mapping[str, Any],
    channels: Sequence[npt.NDArray[np.int16]],
    labels: npt.NDArray[Any] | None = None,
) -> dict[str, Any]:
    """Write a volume.

    Args:
        path: the file.
        facts: what to record of it, in the types of JSON.
        channels: C arrays (D, H, W).
        labels: (D, H, W) uint8 or int16.

    Returns:
        The header: the facts, with ``size``, ``crc`` of each channel, ``start`` of the voxels in bytes, and for labels
        their dtype, CRC and number of voxels by label.
    """
    header: dict[str, Any] = {"format": FORMAT, "version": VERSION, **facts, "size": list(channels[0].shape)}
    header |= {"crc": [2**32 - 1] * len(channels), "labels": None, "start": 2**63}
    if labels is not None:
        codes, counts = np.unique(labels, return_counts=True)
        counted = {str(code): count for code, count in zip(codes.tolist(), counts.tolist(), strict=True)}
        header["labels"] = {"dtype": labels.dtype.name, "crc": 2**32 - 1, "voxels": counted}
    header["start"] = -(-(len(_text(header)) + 8) // _PAGE) * _PAGE
    with atomic_write(path) as part, part.open("wb") as file:
        file.seek(header["start"])
        header["crc"] = [write_blocks(file, channel) for channel in channels]
        if labels is not None:
            header["labels"]["crc"] = write_blocks(file, labels)
        text = _text(header).ljust(header["start"] - 8)
        file.seek(0)
        file.write(len(text).to_bytes(8, "little") + text)
    return header


def read_header(path: str | Path) -> dict[str, Any]:
    """The header of a file.

    Raises:
        CorruptImage: it cannot be read, is not such a file, or is truncated.
    """
    with decoding(path, "its header is damaged"):
        try:
            with open(path, "rb") as file:
                length = int.from_bytes(file.read(8), "little")
                size = os.fstat(file.fileno()).st_size
                header = json.loads(file.read(length)) if length < size else None
        except OSError as error:
            raise CorruptImage(str(path), f"it cannot be read ({error.strerror})") from error
        if not isinstance(header, dict) or (header.get("format"), header.get("version")) != (FORMAT, VERSION):
            raise CorruptImage(str(path), "it is not a volume that densepath wrote, or is truncated")
        if size != (whole := file_size(header)):
            raise CorruptImage(str(path), f"it has {size:,} bytes instead of {whole:,}")
    return header


def file_size(header: Mapping[str, Any]) -> int:
    """The bytes of a file with a header."""
    labels = header["labels"]
    width = 2 * len(header["crc"]) + (np.dtype(labels["dtype"]).itemsize if labels else 0)
    return int(header["start"]) + math.prod(header["size"]) * width


def _text(header: Mapping[str, Any]) -> bytes:
    return json.dumps(header).encode()
