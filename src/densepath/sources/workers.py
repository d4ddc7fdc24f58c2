"""Worker processes that decode images: passing on their results, and killing them when they hang."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cache
from multiprocessing import get_start_method, parent_process
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info
from torch.utils.data._utils import signal_handling

from densepath.core import system
from densepath.core.errors import GUARD, UserError
from densepath.core.streams import say
from densepath.sources.pixel_source import PixelSource

T = TypeVar("T")

SHARED_MEMORY = "/dev/shm"
_SCARCE = 2**28  # bytes
_LEFT = 0.25  # share of it that is left to others
_LOOK = 1.0  # seconds between two looks at the main process


@dataclass(frozen=True)
class _Copied:
    """A result whose tensors are sent as bytes through a pipe; or, inside, one of its tensors."""

    content: Any


def out_of_worker(work: T) -> T | _Copied:
    """Move the tensors of a result to shared memory, if this is a worker process; if that is short, copy them instead.

    PyTorch would do so in a background thread whose errors are lost: the main process would wait forever.
    The main process gets the result by :func:`from_worker`.
    """
    if get_worker_info() is None:
        return work
    tensors = list(_tensors(work))
    try:
        if _is_short(sum(tensor.nbytes for tensor in tensors)):
            raise RuntimeError
        for tensor in tensors:
            tensor.share_memory_()
    except RuntimeError:  # it is full
        return _Copied(_map(work, Tensor, lambda tensor: _Copied(tensor.numpy().copy())))
    return work


class InWorkers(Dataset[Any]):
    """Gathers the images of a source in worker processes: positions and boxes -> what :func:`from_worker` takes."""

    def __init__(self, images: PixelSource) -> None:
        self.images = images

    def __getitem__(self, chunk: tuple[Tensor, Tensor | None]) -> Any:
        return out_of_worker(self.images.gather(*chunk))


def from_worker(work: Any) -> Any:
    """The result of :func:`out_of_worker`, in the main process."""
    if not isinstance(work, _Copied):
        return work
    _explain_copies()
    return _map(work.content, _Copied, lambda copied: torch.from_numpy(copied.content))


def _is_short(size: int) -> bool:
    """Whether shared memory has no room for this many bytes; some of it is left to other users, such as NCCL."""
    try:
        room = shutil.disk_usage(SHARED_MEMORY)
    except OSError:
        return False
    return room.free - size < min(room.total * _LEFT, _SCARCE)


@cache  # once
def _explain_copies() -> None:
    try:
        free = f"{shutil.disk_usage(SHARED_MEMORY).free / 2**20:.0f} MB are free in {SHARED_MEMORY}"
    except OSError:
        free = "shared memory cannot be used"
    say(
        f"densepath: {free}, so images are copied from worker processes, which is slower; make it larger (docker run "
        "--shm-size 8g)"
    )


def out_of_shared_memory(error: BaseException) -> str:
    """The message if shared memory is the likely cause of an error from a worker process; empty if not."""
    try:
        room = shutil.disk_usage(SHARED_MEMORY)
    except OSError:
        return ""
    certain = "allocate shared memory" in str(error) or getattr(error, "errno", None) == errno.ENOSPC
    if not certain and ("Bus error" not in str(error) or room.free > _SCARCE):
        return ""
    return (
        f"{SHARED_MEMORY} is too small for the images from worker processes "
        f"({room.total / 2**20:.0f} MB, {room.free / 2**20:.0f} MB free); make it larger (docker run --shm-size 8g), "
        "or use --workers 0"
    )


def start_workers(loader: Any, loaders: list[Any]) -> Any:
    """The iterator of a ``DataLoader``, whose worker processes start; it joins ``loaders``.

    Torch forgets the processes. Otherwise, where a ``DataLoader`` was once used in the main thread, torch's handler of
    SIGCHLD would report their deaths there as an error, wherever the main thread is. The iterator itself notices them.
    """
    loaders.append(started := iter(loader))
    if getattr(started, "_worker_pids_set", False):
        signal_handling._remove_worker_pids(id(started))
        started._worker_pids_set = False
    return started


def end_workers(loaders: list[Any]) -> None:
    """Kill the worker processes of iterators of :func:`start_workers`: one that is stopped or waits for a disk would
    block the exit of this process.
    """
    for loader in loaders:
        for worker in getattr(loader, "_workers", ()):
            worker.kill()


def _tensors(work: Any) -> list[Tensor]:
    found: list[Tensor] = []
    _map(work, Tensor, found.append)
    return found


def _map(work: Any, kind: type[T], function: Callable[[T], Any]) -> Any:
    """A copy of a result, with a function applied to its parts of a type."""
    if isinstance(work, kind):
        return function(work)
    if is_dataclass(work) and not isinstance(work, type):
        return replace(work, **{field.name: _map(getattr(work, field.name), kind, function) for field in fields(work)})
    if isinstance(work, Mapping):
        return {name: _map(part, kind, function) for name, part in work.items()}
    if isinstance(work, list | tuple):
        parts = [_map(part, kind, function) for part in work]
        return type(work)(*parts) if hasattr(work, "_fields") else type(work)(parts)
    return work


@contextmanager
def report_dead_workers(workers: int, remedy: str) -> Iterator[threading.Event]:
    """Turn the loader's errors about a dead worker process into a UserError.

    Args:
        workers: number of worker processes.
        remedy: what the user can do.

    Returns:
        An event to set when the first result arrives.

    Raises:
        UserError: one of them died.
    """
    arrived = threading.Event()
    try:
        yield arrived
    except (RuntimeError, OSError, EOFError) as error:
        if workers and (why := out_of_shared_memory(error)):
            raise UserError(why) from error
        # Errors that a living worker passes on start with "Caught"
        if not workers or str(error).startswith("Caught"):
            raise
        reason = (str(error) or type(error).__name__).splitlines()[0]
        if not arrived.is_set() and not system.is_command and (how := get_start_method()) != "fork":
            raise UserError(
                f"a process that decodes images died before its first image ({reason}): Python starts processes by "
                f"{how}, which runs the script again; {GUARD}, or set workers to 0"
            ) from error
        raise UserError(
            f"a process that decodes images died, most likely out of memory ({reason}); {remedy}"
        ) from error


def outlive_signals(worker: int) -> None:
    """Keep a worker alive after a stop signal for as long as the main process needs to end its step and save.

    It ends soon after the main process, even while it waits for a file, or is killed by :func:`end_workers`.
    """
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)


def _end_with_parent(parent: int) -> None:
    main = parent_process()  # by forkserver, which Python 3.14 uses, it is not the process's parent
    while os.getppid() == parent and (main is None or main.is_alive()):
        time.sleep(_LOOK)
    os._exit(1)
