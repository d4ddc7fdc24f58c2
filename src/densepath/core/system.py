"""The machine's resources: memory, cores, and how many processes of a run share it."""

from __future__ import annotations

import math
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from rich.progress import track

from densepath.core.errors import UserError
from densepath.core.stopwatch import clock
from densepath.core.streams import is_animated, open_console, say

T = TypeVar("T")
SECONDS_BETWEEN_LINES = 30.0
MOST_PROCESSES = 1024  # that an option may ask for: a larger number is a mistake, and would fill the memory
_CONTROL_GROUPS, _OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
_STATISTICS = Path("/proc/stat")

# Whether this process is a command of this package. In others, such as notebooks, settings of the whole process are
# their own.
is_command = False


def program() -> Path | None:
    """The file of the running program; None in a notebook, an interactive session, for ``python -c`` and stdin."""
    file = getattr(sys.modules.get("__main__"), "__file__", None)
    return Path(file) if file and os.path.isfile(file) else None


def available_memory() -> int:
    """Bytes that can be allocated without swapping, within the limit of a container."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):  # not Linux
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    return min([available, *map(_memory_left, _control_groups("memory"))])


def _control_groups(controller: str) -> list[Path]:
    """The folders of the control groups that may limit this process: its own and those above it, of version 1 and 2."""
    try:
        lines = [line.split(":", 2) for line in _OWN_GROUPS.read_text().splitlines()]
    except OSError:
        lines = []
    found = [_CONTROL_GROUPS, _CONTROL_GROUPS / controller]  # in a container its own group looks like the root
    for _, controllers, path in (line for line in lines if len(line) == 3):
        if not controllers or controller in controllers.split(","):
            root = _CONTROL_GROUPS / controller if controllers else _CONTROL_GROUPS  # version 2 names none
            below = Path(path.lstrip("/"))
            found += [root / part for part in (below, *below.parents)] if ".." not in below.parts else []
    return list(dict.fromkeys(found))


def _memory_left(group: Path) -> int:
    """Bytes that a control group may still allocate; 2**63 without a limit."""
    try:
        first = group / "memory.max"
        names = (
            ("memory.max", "memory.current") if first.exists() else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        )
        limit, used = (int((group / name).read_text()) for name in names)  # "max" where there is none
        counters = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return 2**63
    return limit - used + int(counters.get("total_inactive_file", counters.get("inactive_file", 0)))


def _quota(group: Path) -> float:
    """The cores that a control group may keep busy; infinite without a limit."""
    try:
        if (group / "cpu.max").exists():
            quota, period = map(int, (group / "cpu.max").read_text().split())  # "max" where there is none
        else:
            quota, period = (int((group / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
    except (OSError, ValueError):
        return math.inf
    return quota / period if quota > 0 and period > 0 else math.inf  # version 1: -1 where there is none


def slurm_tasks() -> int:
    """The number of processes that srun started together with this one; 1 if srun did not start this one.

    SLURM's variables also give the job's number of tasks (SLURM_NTASKS) in the job script itself, where the other
    tasks were not started: only a step of the job has an id.
    """
    if not {"SLURM_STEP_ID", "SLURM_PROCID"} <= os.environ.keys():
        return 1
    return int(os.environ.get("SLURM_STEP_NUM_TASKS", os.environ.get("SLURM_NTASKS", "1")))


def processes_on_node() -> int:
    """How many processes of this run share the machine, from the variables of torchrun, srun or this package."""
    names = ["LOCAL_WORLD_SIZE", "WORLD_SIZE"]
    if slurm_tasks() > 1:
        names += ["SLURM_STEP_TASKS_PER_NODE", "SLURM_NTASKS_PER_NODE", "SLURM_TASKS_PER_NODE"]
    for name in names:
        if count := re.match(r"[1-9]\d*", os.environ.get(name, "")):  # SLURM writes 4(x2),3
            return int(count[0])
    return 1


def cores() -> int:
    """The processor cores that the processes of this run may use on this machine: by affinity, and by a quota."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = min(map(_quota, _control_groups("cpu")))
    return max(1, min(count, round(quota))) if math.isfinite(quota) else count


def check_workers(workers: int | None) -> None:
    """Check ``--workers``; None leaves the choice to the command.

    Raises:
        UserError: it is negative or beyond :data:`MOST_PROCESSES`.
    """
    if workers is not None and not 0 <= workers <= MOST_PROCESSES:
        raise UserError(f"workers is {workers}; give a number of processes up to {MOST_PROCESSES:,}, or 0 for none")


def check_processes(devices: int | str, count: int, what: str = "processes") -> None:
    """Check the number of processes that ``--devices`` asks for. Raises UserError beyond :data:`MOST_PROCESSES`."""
    if count > MOST_PROCESSES:
        raise UserError(f"devices is {devices!r}; give a number of {what} up to {MOST_PROCESSES:,}")


def idle_cores(seconds: float = 0.2) -> float:
    """How many of these cores no process used while this one slept; all of them if the system does not say."""
    before = _ticks()
    time.sleep(seconds)
    after = _ticks()
    pairs = [(a - b for a, b in zip(after[name], before[name], strict=True)) for name in before.keys() & after.keys()]
    shares = [idle / total for idle, total in pairs if total > 0]
    return min(float(cores()), sum(shares)) if shares else float(cores())


def _ticks() -> dict[str, tuple[int, int]]:
    """Name of a core -> ticks that it was idle, and all of them."""
    try:
        lines = _STATISTICS.read_text().splitlines()
        own = {f"cpu{number}" for number in os.sched_getaffinity(0)}
        # user, nice, system, idle, iowait, irq, softirq, steal: a guest's ticks are among the user's.
        rows = {words[0]: [int(word) for word in words[1:9]] for words in map(str.split, lines) if words[0] in own}
    except (OSError, ValueError, AttributeError, IndexError):
        return {}
    if len(rows) < len(own):  # a container may number the cores anew
        return {}
    return {name: (ticks[3] + ticks[4], sum(ticks)) for name, ticks in rows.items()}


def usable_cores() -> int:
    """The processor cores that this process may keep busy."""
    return max(1, cores() // processes_on_node())


def first_on_node() -> bool:
    """Whether this is the first process of the run on this machine: only that one prints."""
    return os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")) == "0"


def first_of_job() -> bool:
    """Whether this is the first of the processes of torchrun, of srun or of this package that share some work."""
    if slurm_tasks() > 1 and os.environ["SLURM_PROCID"] != "0":
        return False
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK"))


def with_progress(items: Iterable[T], total: int, what: str) -> Iterator[T]:
    """Yield the items; the node's first process shows a bar in a terminal or a notebook, else a line now and then."""
    console = open_console(sys.stderr)
    if is_animated(console) or not first_on_node():
        quiet = not first_on_node()
        yield from track(items, description=what, total=total, console=console, transient=True, disable=quiet)
        return
    yield from with_lines(items, total, what)


def with_lines(items: Iterable[T], total: int, what: str) -> Iterator[T]:
    """Yield the items, and print a line now and then: for long work whose parts show a bar."""
    began = line_at = time.monotonic()
    for count, item in enumerate(items):
        if (now := time.monotonic()) - line_at >= SECONDS_BETWEEN_LINES:
            line_at = now
            left = f"  ETA {clock((now - began) / count * (total - count))}" if count else ""
            say(f"densepath: {what}: {count} of {total}{left}")
        yield item
