"""Worker processes that decode images: passing on their results, and killing them when they hang."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

from torch import Tensor
from torch.utils.data import get_worker_info

from densepath.core.errors import UserError

T = TypeVar("T")

SHARED_MEMORY = "/dev/shm"
_SCARCE = 2**28  # bytes
_LOOK = 1.0  # seconds between two looks at the main process
_GRACE = 10  # seconds that a worker lives on after SIGTERM


def into_shared_memory(work: T) -> T:
    """Move the tensors of a result to shared memory, if this is a worker process.

    PyTorch would do so in a background thread whose errors are lost: the main process would wait forever.
    """
    if get_worker_info() is not None:
        for tensor in _tensors(work):
            tensor.share_memory_()
    return work


def out_of_shared_memory(error: BaseException) -> str:
    """The message if shared memory is the likely cause of an error from a worker process; empty if not."""
    try:
        room = shutil.disk_usage(SHARED_MEMORY)
    except OSError:
        return ""
    certain = "allocate shared memory" in str(error)
    if not certain and ("Bus error" not in str(error) or room.free > _SCARCE):
        return ""
    return (
        f"{SHARED_MEMORY} is too small for the images from worker processes "
        f"({room.total / 2**20:.0f} MB, {room.free / 2**20:.0f} MB free); make it larger (docker run --shm-size 8g), "
        "or use --workers 0"
    )


def end_workers(loaders: list[Any]) -> None:
    """Kill the worker processes of ``DataLoader`` iterators: one that is stopped or waits for a disk would block the
    exit of this process."""
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


@contextmanager
def report_dead_workers(workers: int, remedy: str) -> Iterator[None]:
    """Turn the loader's errors about a dead worker process into a UserError.

    Args:
        workers: number of worker processes.
        remedy: what the user can do.

    Raises:
        UserError: one of them died.
    """
    try:
        yield
    except (RuntimeError, OSError, EOFError) as error:
        if workers and (why := out_of_shared_memory(error)):
            raise UserError(why) from error
        # Errors that a living worker passes on start with "Caught"
        if not workers or str(error).startswith("Caught"):
            raise
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"a process that decodes images died, most likely out of memory ({reason}); {remedy}"
        ) from error


def outlive_signals(worker: int) -> None:
    """Keep a worker alive after Ctrl-C or SIGTERM for as long as the main process needs to end its step and save.

    It ends soon after the main process, even while it waits for a file.
    """
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_GRACE))  # SIGALRM then ends the process


def _end_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_LOOK)
    os._exit(1)
