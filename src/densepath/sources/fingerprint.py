"""Digests of the names and sizes of images, by which a resumed run knows them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from densepath.core.digests import digest_of_tensors
from densepath.core.system import usable_cores
from densepath.core.threads import in_threads
from densepath.sources.names import AllNames
from densepath.sources.packed import PackedTiles
from densepath.sources.path_table import PathTable
from densepath.sources.patience import patient
from densepath.sources.pixel_source import PixelSource

_BLOCK = 2**14  # names that are processed at a time
_FILES, _THREADS = 2**8, 16  # files whose sizes a thread asks for; these threads wait more than they work
_SLASH = ord("/")
_SAMPLES, _SAMPLE = 1024, 4096  # number of samples of the contents, and their bytes
_PIECES = 16  # of the sample of an image without compression
_GOLDEN = (5**0.5 - 1) / 2  # its multiples are spread evenly, and over all columns whatever the width of an image
_DIGITS = 16  # of the digest of one file


def fingerprint(images: PixelSource) -> dict[str, str]:
    """Digests of the images of a source, without decoding any; a million files take seconds.

    Returns:
        "names": of the names below the folder that they have in common, in order, so that the images may move;
        "sizes": of the sizes of the files, or of the images of a packed store;
        "samples": of the middle of at most 1,024 files, which may have equal sizes without compression; or of 1,024
            pieces of a packed store;
        "pixels": of the images of a packed store, of at most 1,024;
        "parts": of the further files of slides that have several, such as MRXS and DICOM;
        "conversion": of volumes, of their affine maps and of whether each has its own window.
    """
    if (own := getattr(images, "fingerprint", None)) is not None:  # of tiles, whose files are those of the slides
        return dict(own())
    paths = getattr(images, "paths", None)
    table = paths if isinstance(paths, PathTable) else PathTable.of(AllNames(images))
    spread = [k * len(table) // _SAMPLES for k in range(_SAMPLES)] if len(table) > _SAMPLES else range(len(table))
    if isinstance(images, PackedTiles) and images.file is not None:
        sizes = digest_of_tensors({"table": images.table})
        pixels = digest_of_tensors({str(position): _spread_bytes(images, position) for position in spread})
        found = _labelled("store", sizes, _digest_of_store(images)) | {"pixels": pixels}
    else:
        found = _labelled("files", digest_of_sizes(table), digest_of_samples(table[position] for position in spread))
    return {"names": digest_of_names(table), **found}


def _labelled(kind: str, sizes: str, samples: str) -> dict[str, str]:
    """Those of files and of a packed store cannot be compared."""
    return {"sizes": f"{kind} {sizes}", "samples": f"{kind} {samples}"}


def _digest_of_store(images: PackedTiles) -> str:
    """The digest of pieces of the whole store at equal distances: of all bytes of a small one."""
    pixels = images.pixels.view(torch.uint8)
    starts = torch.arange(_SAMPLES) * (max(len(pixels) - _SAMPLE, 0) // _SAMPLES)
    return digest_of_tensors({str(start): pixels[start : start + _SAMPLE] for start in starts.tolist()})


def _spread_bytes(images: PackedTiles, position: int) -> Tensor:
    """Some bytes from everywhere in an image of a store; all of a small one."""
    length = int(images.table[position].long().prod()) * images.spec.channels
    start = int(images.offsets[position])
    content = images.pixels[start : start + length].view(torch.uint8)
    if len(content) <= _SAMPLE:
        return content
    piece = _SAMPLE // _PIECES
    starts = [int(k * _GOLDEN % 1 * (len(content) - piece)) for k in range(1, _PIECES + 1)]
    return torch.cat([content[at : at + piece] for at in starts])


def digest_of_names(table: PathTable) -> str:
    """The digest of names, in order, without the folder that they have in common."""
    skipped = np.arange(_common_folder(table))
    digest = hashlib.sha256()
    for text, starts, lengths in _blocks(table):
        kept = np.ones(len(text), bool)
        kept[starts[:, None] + skipped] = False
        digest.update((lengths - len(skipped)).astype("<i8").tobytes() + text[kept].tobytes())
    return digest.hexdigest()


def digest_of_sizes(files: Iterable[str | Path]) -> str:
    """The digest of the sizes of files in bytes; -1 for a missing one."""
    left = iter(files)
    blocks = iter(lambda: list(islice(left, _FILES)), [])
    digest = hashlib.sha256()
    for sizes in in_threads(_sizes, blocks, _THREADS, "file sizes"):
        digest.update(sizes)
    return digest.hexdigest()


def digest_of_samples(files: Iterable[str | Path]) -> str:
    """The digest of some bytes from the middle of each file."""
    digest = hashlib.sha256()
    for sample in in_threads(_sample, files, usable_cores(), "file contents"):
        digest.update(sample)
    return digest.hexdigest()


def digests_of_contents(files: Iterable[str | Path]) -> list[str]:
    """For each file a digest of its size and of some bytes from its middle; "" for one that cannot be read."""
    return list(in_threads(_digest_of_content, files, usable_cores(), "file contents"))


def digests_of_packed(images: PackedTiles, positions: Iterable[int]) -> list[str]:
    """For each image of a packed store a digest of its size and of some bytes from everywhere in it."""
    parts = ({"size": images.table[position], "pixels": _spread_bytes(images, position)} for position in positions)
    return [digest_of_tensors(part)[:_DIGITS] for part in parts]


def _digest_of_content(file: str | Path) -> str:
    try:
        return hashlib.sha256(b"%d\n" % os.stat(file).st_size + _bytes_of(file)).hexdigest()[:_DIGITS]
    except (OSError, ValueError):
        return ""


def _sample(file: str | Path) -> bytes:
    try:
        return _bytes_of(file)
    except (OSError, ValueError):  # a name of a store need not be a path
        return b""


@patient
def _bytes_of(path: str | Path) -> bytes:
    with open(path, "rb") as opened:
        opened.seek(max(0, os.fstat(opened.fileno()).st_size - _SAMPLE) // 2)
        return opened.read(_SAMPLE)


def _sizes(files: list[str | Path]) -> bytes:
    return b"".join(b"%d\n" % _size(file) for file in files)


def _size(file: str | Path) -> int:
    try:
        return os.stat(file).st_size
    except (OSError, ValueError):
        return -1


def _common_folder(table: PathTable) -> int:
    """The length of the longest beginning of all names that ends with a slash."""
    first = np.frombuffer(os.fsencode(table[0]), np.uint8)
    for text, starts, lengths in _blocks(table):
        first = first[: int(lengths.min())]
        same = (text[starts[:, None] + np.arange(len(first))] == first).all(axis=0)
        first = first[: int(np.argmin(same))] if not same.all() else first
    slashes = np.flatnonzero(first == _SLASH)
    return int(slashes[-1]) + 1 if len(slashes) else 0


def _blocks(table: PathTable) -> Iterator[tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """The bytes of consecutive names, with the start and the length of each."""
    for begin in range(0, len(table), _BLOCK):
        ends = table.starts[begin : begin + _BLOCK + 1].numpy()
        yield table.text[ends[0] : ends[-1]].numpy(), ends[:-1] - ends[0], np.diff(ends)
