"""Computing with the usual defaults of torch, whatever the caller has chosen."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

_AUTOCASTS = ("cpu", "cuda")


class _Float32:
    """Makes float32 the default type of the process while any thread is inside. Threads share that type."""

    def __init__(self) -> None:
        self._lock, self._outside = threading.Lock(), torch.float32
        self._inside: list[int] = []  # the thread of each entry

    @contextmanager
    def __call__(self) -> Iterator[None]:
        thread = threading.get_ident()
        with self._lock:
            if not self._inside:
                self._outside = torch.get_default_dtype()
                torch.set_default_dtype(torch.float32)
            self._inside.append(thread)
        try:
            yield
        finally:
            with self._lock:
                self._inside.remove(thread)
                if not self._inside:
                    torch.set_default_dtype(self._outside)

    def before_fork(self) -> None:
        """Wait until no thread changes the type."""
        self._lock.acquire()

    def after_fork(self) -> None:
        """In the parent."""
        self._lock.release()

    def after_fork_in_child(self) -> None:
        """A forked process has only the thread that forked it."""
        was_inside, self._inside = self._inside, [each for each in self._inside if each == threading.get_ident()]
        if was_inside and not self._inside:
            torch.set_default_dtype(self._outside)
        self._lock = threading.Lock()


_float32 = _Float32()
os.register_at_fork(
    before=_float32.before_fork, after_in_parent=_float32.after_fork, after_in_child=_float32.after_fork_in_child
)


@contextmanager
def torch_defaults() -> Iterator[None]:
    """New tensors are of float32 and on the CPU, and nothing is computed under the caller's autocast.

    An autocast that is entered inside is the outermost one: at its end torch drops its copies of the weights. In a
    nested one later steps would compute with the copies of the first.
    """
    on_cpu: AbstractContextManager[Any] = nullcontext()
    if torch.get_default_device().type != "cpu":
        on_cpu = torch.device("cpu")
    with _float32(), on_cpu, _without_autocast():
        yield


@contextmanager
def _without_autocast() -> Iterator[None]:
    """As if no autocast had been entered by this thread."""
    enabled = [device for device in _AUTOCASTS if torch.is_autocast_enabled(device)]
    depth = torch.autocast_increment_nesting()
    for _ in range(depth):
        torch.autocast_decrement_nesting()
    for device in enabled:
        torch.set_autocast_enabled(device, False)
    try:
        yield
    finally:
        for device in enabled:
            torch.set_autocast_enabled(device, True)
        for _ in range(depth - 1):
            torch.autocast_increment_nesting()
