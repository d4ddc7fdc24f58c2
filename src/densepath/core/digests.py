"""Digests of files and tensors, and texts made from files, cached so that later starts need not read the files."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import torch
from torch import Tensor

from densepath.core.errors import UserError
from densepath.core.files import atomic_write
from densepath.core.locks import shared_work
from densepath.core.system import usable_cores, with_progress
from densepath.core.threads import in_threads

_MIDDLE = 4096  # bytes
_MISSING = bytes(hashlib.sha256().digest_size)


def digest_of(parts: Iterable[str | bytes]) -> str:
    """SHA-256 of several texts, in their order: 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else part.encode("utf-8", "surrogateescape")
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def digest_of_file(path: str | Path) -> str:
    """SHA-256 of a file's bytes. Raises OSError where it cannot be read."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def identical_files(paths: Sequence[str | Path]) -> list[list[int]]:
    """The positions of files of the same bytes, in groups of two or more; files that cannot be read are left out.

    Few bytes are read: the middle of files of equal size, and the whole of those that have it in common.
    """
    groups = _groups(range(len(paths)), [_size(path) for path in paths])
    for read in (_middle, _digest):
        left = [position for group in groups for position in group]
        values = list(in_threads(read, [paths[position] for position in left], usable_cores(), "image data"))
        known = dict(zip(left, values, strict=True))
        groups = [part for group in groups for part in _groups(group, [known[position] for position in group])]
    return groups


def _groups(positions: Iterable[int], values: Iterable[Hashable]) -> list[list[int]]:
    """The positions of equal values other than None, in groups of two or more."""
    groups: dict[Hashable, list[int]] = {}
    for position, value in zip(positions, values, strict=True):
        if value is not None:
            groups.setdefault(value, []).append(position)
    return [group for group in groups.values() if len(group) > 1]


def _size(path: str | Path) -> int | None:
    try:
        return os.stat(path).st_size
    except OSError:
        return None


def _middle(path: str | Path) -> bytes | None:
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _MIDDLE) // 2)
            return file.read(_MIDDLE)
    except OSError:
        return None


def _digest(path: str | Path) -> str | None:
    try:
        return digest_of_file(path)
    except OSError:
        return None


def digest_of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of tensors with their names, dtypes and shapes, in any order."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def digest_of_files(files: Callable[[], Iterable[str | Path]], count: int, cache: Path) -> str:
    """The digest of the contents of files, in their order; their names and folders do not matter.

    The files are read once, see :func:`cached_text`. That a file cannot be read enters the digest.

    Args:
        files: returns the files each time it is called. There may be millions.
        count: how many there are.
        cache: a folder in which the digest is kept.
    """

    def read() -> tuple[str, bool]:
        digest, all_read = hashlib.sha256(), True
        for content, readable in with_progress(
            in_threads(_content, files(), usable_cores(), "file contents"), count, "reading files"
        ):
            digest.update(content)
            all_read &= readable
        return digest.hexdigest(), all_read

    return cached_text("digest", files(), cache, read)


def cached_text(what: str, files: Iterable[str | Path], cache: Path, read: Callable[[], tuple[str, bool]]) -> str:
    """A text made from files: the cached one, or a new one if a file has changed.

    A file counts as unchanged while its path, size and modification time are the same. Of several processes, one makes
    the text.

    Args:
        what: the kind of text.
        files: the files that it is made from.
        cache: the folder in which it is kept; if it cannot be written to, nothing is kept.
        read: returns the text and whether it may be kept.
    """
    stamps = hashlib.sha256(what.encode())
    for file in files:
        stamps.update(stamp(file))
    path = cache / "contents" / stamps.hexdigest()[:32]
    if (known := _known(path)) is not None:
        return known
    with _locked(path.with_suffix(".lock")):
        if (known := _known(path)) is not None:  # another process may have made it meanwhile
            return known
        text, lasting = read()
        if lasting:
            with suppress(UserError, OSError), atomic_write(path) as part:
                part.write_text(f"{digest_of([text])}\n{text}")
    return text


@contextmanager
def _locked(lock: Path) -> Iterator[None]:
    with ExitStack() as stack:
        with suppress(OSError):
            lock.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(shared_work(lock, "digests of files"))
        yield


def _known(path: Path) -> str | None:
    with suppress(OSError, UnicodeDecodeError):
        digest, _, text = path.read_text().partition("\n")
        return text if digest == digest_of([text]) else None
    return None


def stamp(file: str | Path) -> bytes:
    """What changes when a file is replaced: its path, size and modification time."""
    name = os.fsencode(os.path.abspath(file))
    try:
        status = os.stat(file)
    except OSError:
        return name + b"\0-\0"
    return name + f"\0{status.st_size}\0{status.st_mtime_ns}\0".encode()


def _content(file: str | Path) -> tuple[bytes, bool]:
    """The digest of a file, and whether it may be cached: not if the file exists but cannot be read now."""
    try:
        return bytes.fromhex(digest_of_file(file)), True
    except OSError:
        return _MISSING, not os.path.exists(file)
