"""Executes the runs of a grid as processes, one on each device, until all are done or a signal stops them."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from densepath.benchmark.devices import Device
from densepath.benchmark.executors import SubmittedJob
from densepath.benchmark.run_folder import LOG, RunFolder
from densepath.benchmark.table_runs import Run
from densepath.core.errors import UserError, counted
from densepath.core.stopwatch import clock
from densepath.core.waiting import Stuck, Wait
from densepath.runs.progress import say
from densepath.runs.signals import Interrupted, StopSignals

_POLL = 0.1  # seconds between checks of the processes
_POLL_ELSEWHERE = 5.0  # seconds between checks of a run that another process executes


@dataclass
class _Job:
    folder: RunFolder
    device: Device
    process: subprocess.Popen[bytes] | SubmittedJob
    lock: int
    began: float

    @property
    def seconds(self) -> float:
        """How long the process has run; of a job its command, without the time in a queue, so 0 without a result."""
        if isinstance(self.process, SubmittedJob):
            return self.process.seconds or 0.0
        return time.monotonic() - self.began

    def stop(self, signum: int) -> None:
        """Send a signal to the process and to all processes it started."""
        if isinstance(self.process, SubmittedJob):
            self.process.stop(signum)
            return
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signum)


class Runner:
    """Executes the runs that are not done yet.

    A run that fails is reported with its log; runs that depend on it are left out, and the others continue. A run that
    another process executes (perhaps an orphan of an earlier call) is waited for, as long as files in its folder change
    within :func:`~densepath.core.waiting.limit_seconds`; it is taken over if that process ends without a result.

    Args:
        root: the folder that holds all runs.
        runs: the runs, each after those that it depends on.
        devices: the devices to use.
        changed: called when a run is done; its UserError or OSError is printed, and the runs continue.
        submit: submits the command of a run as a job, given its folder, its log and its environment; None starts it as
            a process of this machine.
    """

    def __init__(
        self,
        root: Path,
        runs: Sequence[Run],
        devices: Sequence[Device],
        changed: Callable[[], object],
        submit: Callable[[Sequence[str], Path, Path, Mapping[str, str]], SubmittedJob] | None = None,
    ) -> None:
        self._submit = submit
        self._root = root
        self._waiting = [run for run in runs if RunFolder(root, run).result() is None]
        self._total = len(self._waiting)
        self._done = 0
        self._free = list(devices)
        self._changed = changed
        self._jobs: list[_Job] = []
        self._elsewhere: dict[str, tuple[Wait, float]] = {}  # name of a run -> wait for it, and when it was looked at
        self.failed: dict[str, str] = {}  # name of a run -> reason

    def run(self) -> None:
        """Execute all runs that can be executed.

        Raises:
            Interrupted: a signal was received; the runs have saved their state.
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
        """Start the next possible run on every free device."""
        for run in list(self._waiting):
            if not self._free:
                return
            if run.parent and run.parent.name in self.failed:
                self._waiting.remove(run)
                self._fail(run, f"{run.parent.name} failed")
            elif not (run.parent and run.parent in self._waiting) and self._is_next(run):
                self._try(run)

    def _is_next(self, run: Run) -> bool:
        """Whether its parent is not running, and no other process was just seen executing it."""
        running = any(job.folder.run is run.parent for job in self._jobs)
        _, looked = self._elsewhere.get(run.name, (None, -_POLL_ELSEWHERE))
        return not running and time.monotonic() - looked >= _POLL_ELSEWHERE

    def _try(self, run: Run) -> None:
        folder, lock = RunFolder(self._root, run), None
        try:
            lock = folder.lock()
            if lock is None:
                self._wait(folder)
                return
            self._elsewhere.pop(run.name, None)
            done = folder.result() is not None  # another process has finished it
            if not done:
                self._begin(folder, lock)
        except (UserError, OSError) as error:
            if lock is not None:
                os.close(lock)
            self._waiting.remove(run)
            self._fail(run, _reason(error, folder.path))
            return
        self._waiting.remove(run)
        if done:
            os.close(lock)
            self._total -= 1
            self._report()

    def _begin(self, folder: RunFolder, lock: int) -> None:
        """Start a run on the next free device; its folder is locked."""
        device = self._free[0]
        command = folder.command(device.devices, device.workers)
        folder.begin(command, device.hardware)
        self._jobs.append(_Job(folder, device, self._launch(command, folder, device, lock), lock, time.monotonic()))
        self._free.remove(device)

    def _launch(
        self, command: list[str], folder: RunFolder, device: Device, lock: int
    ) -> subprocess.Popen[bytes] | SubmittedJob:
        environment = {**_import_path(), **device.environment}
        if self._submit is not None:
            return self._submit(command, folder.path, Path(LOG), environment)
        with (folder.path / LOG).open("ab") as log:
            return subprocess.Popen(
                command,
                cwd=folder.path,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **environment},
                start_new_session=True,  # Ctrl-C reaches it only through this process, so only once
                pass_fds=(lock,),  # the folder stays locked as long as the process lives
            )

    def _wait(self, folder: RunFolder) -> None:
        """Wait for a run that another process executes, within the limit."""
        run, now = folder.run, time.monotonic()
        try:
            if run.name in self._elsewhere:
                wait, looked = self._elsewhere[run.name]
                wait.check(now - looked - _POLL_ELSEWHERE)  # no wait while all devices were busy
            else:
                say(f"{run.name}: waiting for another process that executes it")
                remedy = f"another process holds {folder.path}, but writes nothing there; end it, then start again"
                wait = Wait(f"result of {run.name} from another process", remedy, folder.times_of_changes)
            self._elsewhere[run.name] = wait, now
        except Stuck as error:
            self._waiting.remove(run)
            self._fail(run, str(error))

    def _collect(self, stopping: bool) -> None:
        """Collect the results of processes that have ended."""
        for job in [job for job in self._jobs if job.process.poll() is not None]:
            self._jobs.remove(job)
            self._free.append(job.device)
            seconds, code, name = job.seconds, job.process.returncode or 0, job.folder.run.name
            try:
                if code == 0:
                    job.folder.finish(seconds)
                    self._done += 1
                    say(f"[{self._done}/{self._total}] {name}: done in {clock(seconds)} on {job.device.name}")
                    self._report()
                elif stopping:
                    job.folder.pause(seconds)
                else:
                    why = f"killed by signal {-code}" if code < 0 else job.folder.last_message() or f"exit code {code}"
                    job.folder.pause(seconds, why)
                    self._fail(job.folder.run, f"{why} (log: {job.folder.path / LOG})")
            except (UserError, OSError) as error:
                self._fail(job.folder.run, _reason(error, job.folder.path))
            finally:
                os.close(job.lock)

    def _report(self) -> None:
        """Call ``changed``. If it fails, the runs continue: none of them has to be the cause."""
        try:
            self._changed()
        except (UserError, OSError) as error:
            say(f"densepath: the table was not written: {_reason(error, self._root)}")

    def _fail(self, run: Run, why: str) -> None:
        self.failed[run.name] = why
        say(f"{run.name}: failed: {why}")

    def _stop(self, signum: int) -> None:
        """Forward a signal, and wait until all runs have saved their state."""
        if self._jobs:
            say(
                f"densepath: stopping {counted(len(self._jobs), 'run')} and saving their state; signal "
                "again to stop immediately"
            )
        for job in self._jobs:
            job.stop(signal.SIGTERM)
        while self._jobs:
            self._collect(stopping=True)
            time.sleep(_POLL)
        say("densepath: stopped; give the same command to resume")
        raise Interrupted(signum)


def _reason(error: UserError | OSError, folder: Path) -> str:
    """What an error says, with the file of a system's error; with the folder if it names no file."""
    return str(error) if isinstance(error, UserError) else f"{error.filename or folder}: {error.strerror or error}"


def _import_path() -> dict[str, str]:
    """PYTHONPATH with absolute paths: a run's working folder is its own folder."""
    entries = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return {"PYTHONPATH": os.pathsep.join(os.path.abspath(entry) for entry in entries)} if any(entries) else {}
