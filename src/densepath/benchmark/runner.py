"""Runs the cells of a grid as processes, one on each device, until all are done or somebody stops them."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from densepath.benchmark.devices import Slot
from densepath.benchmark.grid import Cell
from densepath.benchmark.run_folder import LOG, CellFolder
from densepath.core.errors import UserError
from densepath.runs.progress import clock, say
from densepath.runs.signals import Interrupted, StopSignals

_POLL = 0.1  # seconds
_ELSEWHERE = 5.0  # seconds between looks at a cell that another process works on


@dataclass
class _Job:
    folder: CellFolder
    slot: Slot
    process: subprocess.Popen[bytes]
    lock: int
    began: float

    def stop(self, signum: int) -> None:
        """Signal the process and all that it started."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signum)


class Runner:
    """Runs what is not done yet.

    A cell that fails is named with its log; what depends on it is left out, and the others go on. A cell that another
    process works on, an orphan of an earlier call perhaps, is waited for.

    Args:
        root: the folder of all cells.
        cells: each after those that it depends on.
        slots: where they run.
        changed: called when a cell is done.
    """

    def __init__(self, root: Path, cells: Sequence[Cell], slots: Sequence[Slot], changed: Callable[[], object]) -> None:
        self._root = root
        self._waiting = [cell for cell in cells if CellFolder(root, cell).result() is None]
        self._total = len(self._waiting)
        self._done = 0
        self._free = list(slots)
        self._changed = changed
        self._jobs: list[_Job] = []
        self._looked: dict[str, float] = {}
        self.failed: dict[str, str] = {}  # name of a cell -> why

    def run(self) -> None:
        """Run all cells that can be run.

        Raises:
            Interrupted: a signal asked to stop; the runs have saved their state.
        """
        with StopSignals() as signals:
            try:
                while self._waiting or self._jobs:
                    self._collect(stopping=False)
                    if signals.received:
                        self._stop(signals.received)
                    self._start()
                    time.sleep(_POLL)
            finally:
                for job in self._jobs:
                    job.stop(signal.SIGKILL)

    def _start(self) -> None:
        """Give every free slot the first cell that can be run."""
        for cell in list(self._waiting):
            if not self._free:
                return
            if cell.parent and cell.parent.name in self.failed:
                self._waiting.remove(cell)
                self._fail(cell, f"{cell.parent.name} failed")
            elif not (cell.parent and cell.parent in self._waiting) and self._is_next(cell):
                self._try(cell)

    def _is_next(self, cell: Cell) -> bool:
        """Whether nothing that it depends on is running, and it is not known to be in other hands."""
        running = any(job.folder.cell is cell.parent for job in self._jobs)
        return not running and time.monotonic() - self._looked.get(cell.name, -_ELSEWHERE) >= _ELSEWHERE

    def _try(self, cell: Cell) -> None:
        folder = CellFolder(self._root, cell)
        lock = folder.lock()
        if lock is None:
            if cell.name not in self._looked:
                say(f"{cell.name}: another process works on it; waiting for it")
            self._looked[cell.name] = time.monotonic()
            return
        self._waiting.remove(cell)
        if folder.result() is not None:  # the other process has done it
            os.close(lock)
            self._total -= 1
            self._changed()
            return
        slot = self._free.pop(0)
        command = folder.command(slot.devices, slot.workers)
        folder.begin(command, slot.hardware)
        with (folder.path / LOG).open("ab") as log:
            process = subprocess.Popen(
                command,
                cwd=folder.path,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **_import_path(), **slot.environment},
                start_new_session=True,  # Ctrl-C reaches it through this process alone, and so once
                pass_fds=(lock,),  # the folder stays taken as long as it works there
            )
        self._jobs.append(_Job(folder, slot, process, lock, time.monotonic()))

    def _collect(self, stopping: bool) -> None:
        """Take the results of processes that have ended."""
        for job in [job for job in self._jobs if job.process.poll() is not None]:
            self._jobs.remove(job)
            self._free.append(job.slot)
            seconds, code, name = time.monotonic() - job.began, job.process.returncode, job.folder.cell.name
            try:
                if code == 0:
                    job.folder.finish(seconds)
                    self._done += 1
                    say(f"[{self._done}/{self._total}] {name}: done in {clock(seconds)} on {job.slot.name}")
                    self._changed()
                elif stopping:
                    job.folder.pause(seconds)
                else:
                    why = f"killed by signal {-code}" if code < 0 else job.folder.last_words() or f"exit code {code}"
                    job.folder.pause(seconds, why)
                    self._fail(job.folder.cell, f"{why} (log: {job.folder.path / LOG})")
            except UserError as error:
                self._fail(job.folder.cell, str(error))
            finally:
                os.close(job.lock)

    def _fail(self, cell: Cell, why: str) -> None:
        self.failed[cell.name] = why
        say(f"{cell.name}: failed: {why}")

    def _stop(self, signum: int) -> None:
        """Hand a signal on, and wait until all runs have saved their state."""
        say(f"densepath: stopping {len(self._jobs)} runs, which save their state; once more to stop at once")
        for job in self._jobs:
            job.stop(signal.SIGTERM)
        while self._jobs:
            self._collect(stopping=True)
            time.sleep(_POLL)
        say("densepath: stopped; the same command goes on")
        raise Interrupted(signum)


def _import_path() -> dict[str, str]:
    """A run works in a folder of its own, so a relative PYTHONPATH would lead nowhere."""
    entries = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return {"PYTHONPATH": os.pathsep.join(os.path.abspath(entry) for entry in entries)} if any(entries) else {}
