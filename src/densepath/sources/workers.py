"""Processes that decode images: how they hand their work over, and how they are ended when they hang."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

from torch import Tensor
from torch.utils.data import get_worker_info

T = TypeVar("T")

SHARED_MEMORY = "/dev/shm"
_SCARCE = 2**28  # bytes


def into_shared_memory(work: T) -> T:
    """Put the tensors of something where the main process finds them, if this is a worker process.

    PyTorch would do so in a thread of its own, whose errors reach nobody: the main process would wait for ever.
    """
    if get_worker_info() is not None:
        for tensor in _tensors(work):
            tensor.share_memory_()
    return work


def out_of_shared_memory(error: BaseException) -> str:
    """What to say where shared memory is the likely cause of an error from a worker process; empty where it is not."""
    try:
        room = shutil.disk_usage(SHARED_MEMORY)
    except OSError:
        return ""
    certain = "allocate shared memory" in str(error)
    if not certain and ("Bus error" not in str(error) or room.free > _SCARCE):
        return ""
    return (
        f"{SHARED_MEMORY} is too small for the images that worker processes hand over "
        f"({room.total / 2**20:.0f} MB, {room.free / 2**20:.0f} MB free); make it larger (docker run --shm-size 8g), "
        "or use --workers 0"
    )


def end_workers(loaders: list[Any]) -> None:
    """Kill the processes of iterators over ``DataLoader``s that do not answer: a process that is stopped, or waits for
    a disk, would hold up the end of this one."""
    for loader in loaders:
        for worker in getattr(loader, "_workers", ()):
            worker.kill()


def _tensors(work: Any) -> Iterator[Tensor]:
    if isinstance(work, Tensor):
        yield work
    elif is_dataclass(work):
        for field in fields(work):
            yield from _tensors(getattr(work, field.name))
    elif isinstance(work, Mapping):
        for part in work.values():
            yield from _tensors(part)
    elif isinstance(work, list | tuple):
        for part in work:
            yield from _tensors(part)
