"""Rows of HDF5 datasets in many small chunks, as CLAM and TRIDENT write features: read from where they lie in the file.

HDF5 looks up each chunk in its index and copies it through its cache, which for chunks of one row takes ten times as
long as reading the bytes.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

_SMALL = 2**18  # bytes: chunks that are larger are read as fast by HDF5


def read_rows(dataset: Any, path: Path) -> npt.NDArray[Any]:
    """All of a dataset (N, D), equal to ``dataset[:]``.

    Args:
        dataset: of h5py, in a file that is opened for reading.
        path: of its file.
    """
    found = _plain_chunks(dataset)
    if found is None:
        return np.asarray(dataset[:])
    firsts, offsets = found
    rows, width = dataset.chunks[0], dataset.shape[1] * dataset.dtype.itemsize
    out = np.empty((-(-len(dataset) // rows) * rows, dataset.shape[1]), dataset.dtype)
    content = memoryview(out).cast("B")
    size = rows * width
    order = np.argsort(firsts)
    firsts, offsets = firsts[order], offsets[order]
    breaks = np.flatnonzero(np.diff(offsets) != size) + 1  # where the next chunk does not follow in the file
    with open(path, "rb", buffering=0) as file:
        for run in np.split(np.arange(len(firsts)), breaks):
            first, count = int(run[0]), len(run)
            part = content[first * size : (first + count) * size]
            done = 0
            while done < len(part):
                read = os.preadv(file.fileno(), [part[done:]], int(offsets[first]) + done)
                if not read:
                    raise ValueError("the file is shorter than its features")
                done += read
    return out[: len(dataset)]


def _plain_chunks(dataset: Any) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]] | None:
    """The first rows of all chunks, and where these lie in the file; None if HDF5 has to read them."""
    chunks, kind = dataset.chunks, dataset.dtype
    if dataset.ndim != 2 or chunks is None or chunks[1] != dataset.shape[1] or not dataset.size:
        return None
    if not hasattr(dataset.id, "chunk_iter"):  # h5py before 3.8, or an old HDF5
        return None
    filtered = dataset.id.get_create_plist().get_nfilters() or dataset.file.userblock_size
    if filtered or kind.hasobject or chunks[0] * chunks[1] * kind.itemsize > _SMALL:
        return None
    found: list[tuple[int, int, int]] = []
    dataset.id.chunk_iter(lambda chunk: found.append((chunk.chunk_offset[0], chunk.byte_offset, chunk.filter_mask)))
    firsts, offsets, masks = np.array(found, np.int64).reshape(-1, 3).T
    if len(firsts) != -(-len(dataset) // chunks[0]) or masks.any():  # chunks that were never written have no place
        return None
    return firsts, offsets
