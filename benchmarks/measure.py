"""Timing, memory and tables for all benchmarks.

Machines are noisy, so compared cases are measured alternately, and medians and ratios are reported.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import sys
import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import densepath
from densepath.core.files import atomic_write

MIB = 2**20
PEERS = ("densecl", "dino", "moco_v2")  # methods of lightly in benchmarks.peers, which needs it
_PACKAGE = f"{Path(densepath.__file__ or '').parent}{os.sep}"
_MOST_FRAMES = 60  # of the host's stack, where a place in this package is looked for
_clock = time.perf_counter


def machine() -> dict[str, str]:
    """Hardware and software of the measurement."""
    name = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        name = next((line.split(":")[1].strip() for line in info.open() if line.startswith("model name")), name)
    facts = {
        "densepath": densepath.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cpu": f"{name}, {len(os.sched_getaffinity(0))} cores, {torch.get_num_threads()} threads",
    }
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
    return facts


def measure_cpu_time() -> None:
    """From now on measure the time of this process's threads on a CPU, which other programs change little."""
    global _clock
    _clock = time.process_time


def now(device: torch.device) -> float:
    """The time in seconds, after all work of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return _clock()


def in_turns(
    cases: Mapping[str, Callable[[], Any]], repeats: int, device: torch.device, warmup: int = 2, calls: int = 1
) -> dict[str, list[float]]:
    """Seconds per call of each case, once in each of ``repeats`` rounds.

    Args:
        cases: name -> function to time.
        repeats: measured rounds, after ``warmup`` others.
        device: the device that computes.
        calls: calls per measurement: on a GPU a single call would include its launch.
    """
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(warmup + repeats):
        for name, case in cases.items():
            start = now(device)
            for _ in range(calls):
                case()
            if turn >= warmup:
                seconds[name].append((now(device) - start) / calls)
    return seconds


def isolated(function: Callable[..., Any], *arguments: Any, seconds: float | None = None) -> Any:
    """The result of a function in a separate process, with nothing else in its memory.

    Raises:
        TimeoutError: it took longer than ``seconds``, and was ended.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(function, *arguments).result(seconds)
        except TimeoutError:
            for child in multiprocessing.active_children():
                child.kill()
            raise TimeoutError(f"ended after {seconds:.0f} s") from None


def ratio(above: list[float], below: list[float]) -> float:
    """The median ratio of two times of the same round."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


class Parts:
    """Times functions within a larger one, by name; on a GPU with events, without synchronization."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._spans: dict[str, list[Any]] = {}
        self._undo: list[Callable[[], None]] = []

    def watch(self, owner: Any, attribute: str, name: str) -> None:
        """Time each call of ``owner.attribute`` under ``name``."""
        function = getattr(owner, attribute)
        had = attribute in vars(owner)

        @wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = self._mark()
            result = function(*args, **kwargs)
            self._spans.setdefault(name, []).append((start, self._mark()))
            return result

        setattr(owner, attribute, timed)
        self._undo.append(lambda: setattr(owner, attribute, function) if had else delattr(owner, attribute))

    def clear(self) -> None:
        """Discard all measurements."""
        self._spans.clear()

    def seconds(self) -> dict[str, float]:
        """Total time of the calls, by name."""
        now(self.device)
        return {name: sum(self._span(*span) for span in spans) for name, spans in self._spans.items()}

    def restore(self) -> None:
        """Restore the original functions."""
        for undo in reversed(self._undo):
            undo()
        self._undo.clear()

    def _mark(self) -> Any:
        if self.device.type != "cuda":
            return _clock()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _span(self, start: Any, end: Any) -> float:
        return start.elapsed_time(end) / 1e3 if self.device.type == "cuda" else end - start


@contextmanager
def synchronizations(device: torch.device) -> Iterator[list[str]]:
    """Code lines where the host synchronizes with the GPU, one for each time."""
    places: list[str] = []
    if device.type != "cuda":
        yield places
        return
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = lambda message, *_: places.append(place()) if "synchroniz" in str(message) else None
            yield places
    finally:
        torch.cuda.set_sync_debug_mode("default")


def place() -> str:
    """Where in densepath the host is."""
    for frame in reversed(traceback.extract_stack(limit=_MOST_FRAMES)):
        if frame.filename.startswith(_PACKAGE):
            return f"{frame.filename.removeprefix(_PACKAGE)}:{frame.lineno}: {frame.line}"
    return "elsewhere"


def listed(places: Sequence[str]) -> str:
    """Places, the most frequent first, each once with its number."""
    return "; ".join(f"{count} at {where}" for where, count in Counter(places).most_common())


@contextmanager
def peak_memory(device: torch.device, result: dict[str, float]) -> Iterator[None]:
    """Store the peak memory of the block in ``result["peak_mib"]``: of the GPU, or of this process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield
        result["peak_mib"] = torch.cuda.max_memory_allocated(device) / MIB
        return
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    yield
    result["peak_mib"] = status_mib("VmHWM")


def status_mib(field: str) -> float:
    """An entry of /proc/self/status in MiB: VmHWM (peak resident), VmRSS, RssAnon."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:"))


class TreeMemory:
    """Peak memory of a process and its children together, by sampling; shared pages count once."""

    def __init__(self, pid: int, every: float = 0.25) -> None:
        self.peak_mib = 0.0
        self._pid, self._every = pid, every
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> TreeMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(self._every):
            self.peak_mib = max(self.peak_mib, sum(_proportional_mib(pid) for pid in _family(self._pid)))


def _family(pid: int) -> list[int]:
    try:
        tasks = Path(f"/proc/{pid}/task").iterdir()
        children = [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except OSError:
        return [pid]
    return [pid, *(member for child in children for member in _family(child))]


def _proportional_mib(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("Pss:"))
    except (OSError, StopIteration):
        return 0.0


def report(title: str, rows: list[dict[str, Any]], out: str | None = None) -> None:
    """Print each row as a column headed by its "case", and the machine; ``out`` names a JSON file."""
    facts = machine()
    table = Table(title=title, caption="; ".join(f"{key} {value}" for key, value in facts.items()))
    table.add_column("")
    for row in rows:
        table.add_column(row["case"], justify="right")
    for measure in dict.fromkeys(key for row in rows for key in row if key != "case"):
        table.add_row(measure.replace("_", " "), *(_text(row.get(measure, "")) for row in rows))
    Console(width=max(100, Console().width)).print(table)
    if out:
        write_json(out, {title: rows})


def shown(row: dict[str, Any]) -> dict[str, Any]:
    """A row, printed on stderr as soon as it is measured: a benchmark that is cut off has said something."""
    print(json.dumps(row), file=sys.stderr, flush=True)
    return row


def write_json(path: str, tables: Mapping[str, Any]) -> None:
    """Write tables by title, and the machine, as JSON. A call that is killed meanwhile leaves the file as it was."""
    with atomic_write(path) as part:
        part.write_text(json.dumps({"machine": machine(), "tables": tables}, indent=1) + "\n")


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.4g}"
    return str(value)


def at_least(low: int) -> Callable[[str], int]:
    """The type of an option that is a whole number from ``low``."""

    def number(text: str) -> int:
        if int(text) < low:
            raise argparse.ArgumentTypeError(f"{text} is below {low}")
        return int(text)

    return number


def parser(description: str) -> argparse.ArgumentParser:
    """A parser with the common options of all benchmarks."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    made.add_argument("--data", help="a folder of images or a packed store; procedural tissue by default")
    made.add_argument("--repeats", type=at_least(1), default=7, help="number of measured rounds")
    made.add_argument("--json", help="a file for the results")
    return made
