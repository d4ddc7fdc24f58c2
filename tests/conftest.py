"""What every test shares."""

from __future__ import annotations

import re
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import settings

# The same examples each time, however slow the machine.
settings.register_profile("densepath", deadline=None, derandomize=True)
settings.load_profile("densepath")

# A shell starts what is to run in the background with Ctrl-C ignored, and tests that press it would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

_PROC = Path("/proc/self")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Give every test the same random numbers, alone or among others."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def bounded_memory() -> Callable[..., AbstractContextManager[None]]:
    """A context that fails if what is done in it takes more memory than some MiB; it knows Linux alone.

    Asking for more than ``most`` MiB of addresses raises MemoryError there.
    """

    @contextmanager
    def bounded(mebibytes: int, most: int = 2**14) -> Iterator[None]:
        if not (_PROC / "clear_refs").exists():
            yield
            return
        (_PROC / "clear_refs").write_text("5")  # the peak begins anew
        before, limits = _status("VmRSS"), resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (_status("VmSize") + most * 2**20, limits[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_AS, limits)
        assert _status("VmHWM") - before < mebibytes * 2**20

    return bounded


def _status(name: str) -> int:
    """Bytes that the system counts for this process under a name."""
    return 1024 * int(re.findall(rf"{name}:\s*(\d+) kB", (_PROC / "status").read_text())[0])
