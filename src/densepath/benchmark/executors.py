"""Runs of a grid as jobs of submitit: on the machines of a SLURM cluster, or here."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import yaml

from densepath.core.errors import UserError

EXECUTORS = ("local", "slurm", "debug")


class SubmittedJob:
    """A job of submitit with what :class:`~densepath.benchmark.runner.Runner` needs of a process.

    Args:
        job: the job; its result is the exit code of the command.
    """

    def __init__(self, job: Any) -> None:
        self._job = job
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """The exit code; None while the job waits or runs. A job that the cluster has ended has failed with 1."""
        if self.returncode is None and self._job.done():
            try:
                self.returncode = int(self._job.result())
            except Exception:  # submitit's errors, and those of its files
                self.returncode = 1
        return self.returncode

    def stop(self, signum: int) -> None:
        """Cancel the job: the command gets SIGTERM and saves its state."""
        self._job.cancel(check=False)
        if self._job.job_id.startswith("DEBUG"):  # it has not started, and never will
            self.returncode = -signum


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
        raise UserError("--executor needs submitit; install densepath[slurm]") from None
    parameters = {}
    for option in options:
        name, sign, value = option.partition("=")
        if not sign:
            raise UserError(f"executor_options has {option!r}; write NAME=VALUE")
        parameters[name] = yaml.safe_load(value)
    try:
        made = submitit.AutoExecutor(folder=folder, cluster=executor)
        made.update_parameters(name="densepath", **parameters)
    except (RuntimeError, NameError, TypeError, ValueError) as error:
        raise UserError(f"submitit's executor {executor} cannot be used: {' '.join(str(error).split())}") from None

    def submit(command: Sequence[str], cwd: Path, log: Path, environment: Mapping[str, str]) -> SubmittedJob:
        return SubmittedJob(made.submit(execute, list(command), str(cwd.absolute()), str(log), dict(environment)))

    return submit


def execute(command: Sequence[str], cwd: str, log: str, environment: Mapping[str, str]) -> int:
    """Run a command in a folder, where the job has been started; its exit code.

    SLURM sends the signals of a cancelled job to the command itself; submitit's local executor sends an interrupt to
    this process only.
    """
    with open(Path(cwd) / log, "ab") as text:
        process = subprocess.Popen(
            command,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=text,
            stderr=text,
            env={**os.environ, **environment},
            start_new_session=True,
        )

    def forward(number: int, frame: FrameType | None) -> None:
        process.send_signal(signal.SIGTERM)

    before = signal.signal(signal.SIGINT, forward), signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        return process.wait()
    finally:
        signal.signal(signal.SIGINT, before[0])
        signal.signal(signal.SIGTERM, before[1])
