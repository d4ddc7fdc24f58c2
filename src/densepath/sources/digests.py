"""Digests of what many files hold, kept so that later starts need not read them all again."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from filelock import FileLock

from densepath.core.errors import UserError
from densepath.core.files import atomic_write
from densepath.core.system import usable_cores, with_progress

if TYPE_CHECKING:
    from densepath.sources.packed import PackedTiles

_FOLDER, _FILE = "contents", "digest"
_VERSION = b"1"  # of what is digested
_AT_ONCE = 1024  # files whose digests are in memory
_BYTES = 2**24  # of tiles that are looked at together


def digest_of_files(files: Callable[[], Iterable[str | Path]], count: int, cache: Path) -> str:
    """The digest of what files hold, in their order; their names and places make no difference.

    The files are read once. Then their paths, sizes and times of change stand for them: a file that was replaced by one
    of the same size and time is taken for the same. One that is missing counts as such.

    Args:
        files: gives them, as often as it is called.
        count: how many there are.
        cache: a folder in which the digest is kept.
    """

    def read() -> tuple[str, bool]:
        digest, all_read = hashlib.sha256(_VERSION), True
        for content, readable in with_progress(_contents(files()), count, "reading files"):
            digest.update(content)
            all_read &= readable
        return digest.hexdigest(), all_read

    return _kept(files(), cache, read)


def digest_of_tiles(tiles: PackedTiles, cache: Path) -> str:
    """The digest of decoded images, in their order. That of a store on the disk is kept as for files."""
    if tiles.file is None:
        return _digest_of_pixels(tiles)
    return _kept([tiles.file], cache, lambda: (_digest_of_pixels(tiles), True))


def _kept(files: Iterable[str | Path], cache: Path, read: Callable[[], tuple[str, bool]]) -> str:
    """What was read of the same files before, or is now; it is kept if reading them did not fail."""
    stamps = hashlib.sha256(_VERSION)
    for file in files:
        stamps.update(_stamp(file))
    path = cache / _FOLDER / stamps.hexdigest()[:32] / _FILE
    if (known := _known(path)) is not None:
        return known
    with _alone(path.with_name("lock")):
        if (known := _known(path)) is not None:  # another process may have read them meanwhile
            return known
        digest, lasting = read()
        if lasting:
            with suppress(UserError, OSError), atomic_write(path) as part:  # a cache that may only be read still serves
                part.write_text(digest)
    return digest


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """One process at a time, where the cache can be written to."""
    with ExitStack() as stack:
        with suppress(OSError):
            lock.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(FileLock(lock))
        yield


def _known(path: Path) -> str | None:
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError):
        return None
    return text if re.fullmatch("[0-9a-f]{64}", text) else None


def _stamp(file: str | Path) -> bytes:
    """What changes when a file is replaced: its path, size and time of change."""
    name = os.fsencode(os.path.abspath(file))
    try:
        status = os.stat(file)
    except OSError:
        return name + b"\0-\0"
    return name + f"\0{status.st_size}\0{status.st_mtime_ns}\0".encode()


def _contents(files: Iterable[str | Path]) -> Iterator[tuple[bytes, bool]]:
    """As ``_content``, for each file, by several threads, as disks answer several at a time."""
    left = iter(files)
    with ThreadPoolExecutor(usable_cores()) as pool:
        while block := list(islice(left, _AT_ONCE)):
            yield from pool.map(_content, block)


def _content(file: str | Path) -> tuple[bytes, bool]:
    """The digest of a file, and whether it is that for good: not if there is a file that cannot be read now."""
    try:
        with open(file, "rb") as content:
            return hashlib.file_digest(content, "sha256").digest(), True
    except OSError:
        return bytes(hashlib.sha256().digest_size), not os.path.exists(file)


def _digest_of_pixels(tiles: PackedTiles) -> str:
    digest = hashlib.sha256(_VERSION)
    digest.update(tiles.table.numpy().tobytes())
    content = tiles.pixels.view(torch.uint8)
    starts = range(0, content.numel(), _BYTES)
    for start in with_progress(starts, len(starts), "reading tiles"):
        digest.update(content[start : start + _BYTES].cpu().numpy().tobytes())
    return digest.hexdigest()
