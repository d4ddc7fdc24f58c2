"""Computing with the usual defaults of torch, whatever the caller has chosen."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

_AUTOCASTS = ("cpu", "cuda")


class _Float32:
    """Makes float32 the default type of the process while any thread is inside. Threads share that type."""

    def __init__(self) -> None:
        self._lock, self._inside, self._outside = threading.Lock(), 0, torch.float32

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with self._lock:
            if not self._inside:
                self._outside = torch.get_default_dtype()
                torch.set_default_dtype(torch.float32)
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if not self._inside:
                    torch.set_default_dtype(self._outside)


_float32 = _Float32()


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
