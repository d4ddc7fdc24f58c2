"""The matrices in a MATLAB file, read by scipy, which never gets more to see than a matrix's own head promises."""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator
from io import BytesIO
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.io
from scipy.io.matlab import matfile_version

_HEADER_BYTES, _TAG_BYTES = 128, 8
_FIVE = 1  # the version as which scipy counts the format that may be compressed and that it reads
_COMPRESSED = 15  # the kind of an element that holds another one, deflated
_HEAD_BYTES = 1024  # more than an element's flags, sides and name take
_HEAD_READ = 4096  # of a compressed element, from which these come
_NUMBER_BYTES = 8  # of the widest numbers
_MARGIN = 2**16  # for the head and the padding

Listed = tuple[str, tuple[int, ...], str]  # name, shape, class


def list_matrices(path: Path) -> list[Listed]:
    """What a MATLAB file holds, in its order, from the heads alone.

    Raises:
        NotImplementedError: it has the format 7.3.
        Exception: of any type, where it is damaged.
    """
    listed: list[Listed] = []
    for header, kind, content, begin, end in _elements(path):
        head = content[begin : min(end, begin + _HEAD_READ)]
        head = zlib.decompressobj().decompress(head, _HEAD_BYTES) if kind == _COMPRESSED else head[:_HEAD_BYTES]
        length = struct.pack(f"{_order(header)}I", len(head) - _TAG_BYTES)  # of what is left of it
        listed += scipy.io.whosmat(BytesIO(header + head[:4] + length + head[_TAG_BYTES:]))
    return listed or scipy.io.whosmat(path)


def read_matrix(path: Path, number: int, listed: Listed) -> npt.NDArray[Any]:
    """One matrix of a MATLAB file.

    Args:
        path: the file.
        number: its place in what :func:`list_matrices` gives, from 0.
        listed: what stands there.

    Raises:
        Exception: of any type, where the file is damaged, or holds more numbers there than the shape has.
    """
    name, shape, _ = listed
    most = math.prod(shape) * _NUMBER_BYTES + _MARGIN
    for position, (header, kind, content, begin, end) in enumerate(_elements(path)):
        if position == number:
            data, inflater = content[begin:end], zlib.decompressobj()
            if kind == _COMPRESSED:
                data = inflater.decompress(data, most)
                if not inflater.eof:
                    raise ValueError("it is cut short, or holds more numbers than its head says")
            return np.asarray(scipy.io.loadmat(BytesIO(header + data))[name])
    return np.asarray(scipy.io.loadmat(path, variable_names=[name])[name])


def _elements(path: Path) -> Iterator[tuple[bytes, int, mmap, int, int]]:
    """The file's header, the kind of each element, the file, and where in it the element begins and ends.

    There are none in a file that knows no compression.
    """
    if matfile_version(path)[0] != _FIVE:
        return
    with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as content:
        header = content[:_HEADER_BYTES]
        place = _HEADER_BYTES
        while place + _TAG_BYTES <= len(content):
            kind, length = struct.unpack_from(f"{_order(header)}II", content, place)
            begin = place if kind != _COMPRESSED else place + _TAG_BYTES
            place += _TAG_BYTES + length
            if place > len(content):
                raise ValueError("it is cut short")
            yield header, kind, content, begin, place


def _order(header: bytes) -> str:
    return "<" if header[-2:] == b"IM" else ">"
