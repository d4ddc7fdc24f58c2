"""Runs of a grid as jobs of submitit: on the machines of a SLURM cluster, or here."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from densepath.benchmark.run_folder import lock_for_job
from densepath.core.errors import UserError, unwrapped
from densepath.core.yaml_files import load_yaml

EXECUTORS = ("local", "slurm", "debug")
_LIMITS = ("timeout_min", "slurm_time")  # submitit's default is 5 minutes
ASK_EVERY = 30.0  # seconds between two questions whether SLURM still has a job
_STOP_EVERY = 1.0  # seconds between two SIGTERMs to a job on this machine: one may come before the job handles it
_WEEK = 7 * 24 * 60  # minutes, a limit where no cluster sets one


class SubmittedJob:
    """A job of submitit with what :class:`~densepath.benchmark.runner.Runner` needs of a process.

    Args:
        job: the job; its result is that of :func:`timed`.
        local: whether it is a process on this machine, whose number is that of the job.

    Attributes:
        returncode: the exit code of its command; None before its end.
        seconds: how long the command ran; None if that is unknown. A job may wait long before it starts.
    """

    def __init__(self, job: Any, local: bool = False) -> None:
        self._job, self._local = job, local
        self.returncode: int | None = None
        self.seconds: float | None = None
        self._ask_at = 0.0
        self._missed = 0
        self._stop_at: float | None = None  # the next SIGTERM

    def poll(self) -> int | None:
        """The exit code; None while the job waits or runs. A job that the cluster has ended has failed with 1."""
        if self.returncode is None and self._job.done():
            try:
                self.returncode, self.seconds = self._job.result()
            except Exception:  # submitit's errors, and those of its files
                self.returncode = 1
        elif self.returncode is None and self._is_lost():
            self.returncode = 1
        if self.returncode is None and self._stop_at is not None and time.monotonic() >= self._stop_at:
            self._terminate()
        return self.returncode

    def _is_lost(self) -> bool:
        """Whether the job has ended without a result: submitit asks ``sacct``, which knows nothing without accounting.

        Asked twice, because the result may arrive late on a common disk.
        """
        if time.monotonic() < self._ask_at or self._job.state != "UNKNOWN":
            return False
        self._ask_at = time.monotonic() + ASK_EVERY
        command = ["squeue", "--noheader", "--jobs", self._job.job_id, "--format", "%T"]
        try:
            found = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError:
            return False
        gone = not found.stdout.strip() and (found.returncode == 0 or "Invalid job id" in found.stderr)
        self._missed = self._missed + 1 if gone else 0
        return self._missed > 1

    def stop(self, signum: int) -> None:
        """Cancel the job: the command gets SIGTERM and saves its state. A job on this machine must be polled then."""
        if self._local:  # submitit's own interrupt ends its process with a traceback, and kills the job a second later
            self._terminate()
            return
        self._job.cancel(check=False)
        if self._job.job_id.startswith("DEBUG"):  # it has not started, and never will
            self.returncode = -signum

    def _terminate(self) -> None:
        self._stop_at = time.monotonic() + _STOP_EVERY
        with suppress(ProcessLookupError):
            os.kill(int(self._job.job_id), signal.SIGTERM)


def make_submit(
    executor: str, folder: Path, options: Sequence[str]
) -> Callable[[Sequence[str], Path, Path, Mapping[str, str]], SubmittedJob]:
    """A function that submits a command, given its working folder, its log and its environment.

    Args:
        executor: "slurm"; "local", processes on this machine, to try a table; or "debug", one after another in this
            process.
        folder: where submitit keeps its files; every machine must see it.
        options: submitit's parameters as NAME=VALUE: ``gpus_per_node=1``, ``timeout_min=600``,
            ``slurm_partition=gpu``.

    Raises:
        UserError: submitit is not installed, there is no SLURM, or a parameter is invalid.
    """
    if executor not in EXECUTORS:
        raise UserError(f"executor is {executor!r}; use one of {', '.join(EXECUTORS)}")
    try:
        import submitit
    except ImportError:
        raise UserError('--executor needs submitit; pip install "densepath[slurm]"') from None
    logging.getLogger("submitit").setLevel(logging.ERROR)  # it warns at each look where SLURM has no accounting
    parameters = {}
    for option in options:
        name, sign, value = option.partition("=")
        if not sign:
            raise UserError(f"executor_options has {option!r}; write NAME=VALUE")
        parameters[name] = load_yaml(value, f"executor_options {option}")
    if not parameters.keys() & {*_LIMITS}:
        if executor == "slurm":
            raise UserError("--executor slurm needs a time limit of its jobs; give --executor_options timeout_min=720")
        parameters["timeout_min"] = _WEEK
    try:
        made = submitit.AutoExecutor(folder=folder, cluster=executor)
        made.update_parameters(name="densepath", **parameters)
    except (RuntimeError, NameError, TypeError, ValueError) as error:
        raise UserError(f"submitit's executor {executor} cannot be used: {unwrapped(str(error))}") from None

    def submit(command: Sequence[str], cwd: Path, log: Path, environment: Mapping[str, str]) -> SubmittedJob:
        given = list(command), str(cwd.absolute()), str(log), dict(environment)
        if executor != "local":
            return SubmittedJob(made.submit(timed, *given))
        with _interrupts_blocked():  # Ctrl-C in a terminal reaches submitit's process, too
            return SubmittedJob(made.submit(timed, *given), local=True)

    return submit


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Processes that are started in this block do not get SIGINT; this process gets one after the block."""
    handler, noted = signal.getsignal(signal.SIGINT), list[int]()
    catches = handler is not None and threading.current_thread() is threading.main_thread()
    if catches:  # the system gives a signal that this thread blocks to another one
        signal.signal(signal.SIGINT, lambda number, frame: noted.append(number))
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if catches:
            signal.signal(signal.SIGINT, handler)
        for number in noted[:1]:
            signal.raise_signal(number)


def timed(command: Sequence[str], cwd: str, log: str, environment: Mapping[str, str]) -> tuple[int, float]:
    """The exit code of :func:`execute`, and the seconds that it took."""
    began = time.monotonic()
    return execute(command, cwd, log, environment), time.monotonic() - began


def execute(command: Sequence[str], cwd: str, log: str, environment: Mapping[str, str]) -> int:
    """Run a command in a folder, where the job has been started; its exit code.

    An interrupt (submitit's local executor) and SIGUSR2 (a time limit) end the command by SIGTERM, so that it saves its
    state. SIGTERM does too, but SLURM sends it to the command itself, and a second one would end it at once. The folder
    stays locked until the command has ended, whatever becomes of the process that submitted the job.
    """
    lock = lock_for_job(Path(cwd))
    ended: list[int] = []
    process: subprocess.Popen[bytes] | None = None

    def end(number: int, frame: FrameType | None) -> None:
        itself = number == signal.SIGTERM and os.environ.get("SUBMITIT_EXECUTOR") == "slurm"
        if not ended and not itself and process is not None:
            ended.append(number)
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGTERM)

    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGUSR2)}
    mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # blocked since the submission
    before[signal.SIGTERM] = signal.getsignal(signal.SIGTERM)
    try:
        with open(Path(cwd) / log, "ab") as text:
            process = subprocess.Popen(
                command,
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=text,
                stderr=text,
                env={**os.environ, **environment},
                start_new_session=True,
                pass_fds=(lock,),
            )
        for number in before:  # the command ignores SIGUSR2, which SLURM sends to it, too
            signal.signal(number, end)
        return process.wait()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if process is not None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)  # with what it started
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(lock)
