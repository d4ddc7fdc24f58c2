"""The threads of a CPU that torch computes with."""

from __future__ import annotations

import math
import os

import torch

from densepath.core import system
from densepath.core.streams import say
from densepath.core.system import cores, first_on_node, idle_cores, processes_on_node, usable_cores

_ALMOST = 0.4  # of a core that may be busy without losing it: the system's own work
_chosen_for: list[int] = []  # processes; filled by the first call: all computations of a process have the same rounding


def use_idle_cores(processes: int = 1) -> None:
    """Compute with as many threads as there are idle cores, rather than with one for each core.

    An operation waits for its slowest thread. On a core that others keep busy a thread gets its turn late, and the
    other threads meanwhile wait at every barrier: with two threads beside six busy processes a run has a seventh of the
    speed of a single thread. The number is chosen by the first call and not changed, as sums depend on it in their last
    bits.

    OMP_NUM_THREADS, or a call of ``torch.set_num_threads`` before this one, fixes it instead. Only commands of this
    package choose: in a notebook or a program of the user the number of threads is theirs.

    Args:
        processes: number of processes of this run on this machine, which share the cores.
    """
    if _chosen_for:
        return
    _chosen_for.append(processes)
    together = max(processes, processes_on_node())
    most = max(1, min(torch.get_num_threads(), cores() // together))
    if not system.is_command or "OMP_NUM_THREADS" in os.environ or torch.get_num_threads() == 1:
        return
    found = max(1, min(most, math.floor((idle_cores() + _ALMOST) / together)))
    if found < torch.get_num_threads():
        torch.set_num_threads(found)
    if found < most and first_on_node():
        say(
            f"densepath: other programs use this machine: {found} of {most} threads; OMP_NUM_THREADS={most} for all, "
            "which is slower while they run"
        )


def keep_threads(count: int | None) -> None:
    """Compute with the number of threads that a run was started with, as far as there are cores."""
    if count is not None and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, min(count, usable_cores())))
