"""The folder of one run of a grid: its description, command and result. One process at a time works in it."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import yaml

from densepath.benchmark.steps.slides import features_in
from densepath.benchmark.steps.step import OPTIONS, RUN
from densepath.benchmark.table_runs import Run
from densepath.core.errors import UserError
from densepath.core.files import atomic_write
from densepath.core.keywords import is_on_disk
from densepath.core.locks import NO_LOCKS
from densepath.core.scores import SCALE, in_percent
from densepath.core.streams import say
from densepath.version import __version__

NOTES, LOG = "run.json", "log.txt"
_LOCK, _JOB_LOCK = ".lock", ".job_lock"
_POLL = 1.0  # seconds between two attempts to lock the folder for a job


class RunFolder:
    """A run's folder on disk.

    Args:
        root: the folder that holds all runs.
        run: the run.
    """

    def __init__(self, root: Path, run: Run) -> None:
        self.run = run
        self.root = root
        self.path = root / run.name

    def notes(self) -> dict[str, Any]:
        """The notes about the run; empty if it was never started.

        Raises:
            UserError: they cannot be read, or the folder belongs to another run.
        """
        try:
            notes = json.loads((self.path / NOTES).read_text())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise self._unreadable() from error
        if not isinstance(notes, dict) or notes.get("digest") != self.run.digest:
            raise UserError(f"{self.path} is the folder of another run; delete it")
        return notes

    def result(self) -> dict[str, Any] | None:
        """The scores of a finished run (for a pre-training: its last step and loss), None before that.

        Raises:
            UserError: the notes or the scores in them cannot be read, or the folder belongs to another run.
        """
        notes = self.notes()
        result = notes.get("result")
        if result is None or not self.run.step.is_whole(self.path):
            return None
        try:
            return in_percent(result, notes) if self.run.step.metrics else result
        except (ValueError, TypeError, AttributeError) as error:
            raise self._unreadable() from error

    def _unreadable(self) -> UserError:
        return UserError(f"{self.path / NOTES} cannot be read; delete the folder {self.path}")

    def lock(self) -> int | None:
        """Lock the folder for this process and those that inherit the descriptor; None if another process holds it, or
        a job that another process has submitted runs in it.

        The system releases the lock when the last of these processes has ended, however it ends.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        descriptor = _locked(self.path / _LOCK)
        if descriptor is not None and (self.path / _JOB_LOCK).exists():
            job = _locked(self.path / _JOB_LOCK)
            os.close(descriptor if job is None else job)
            return None if job is None else descriptor
        return descriptor

    def times_of_changes(self) -> int:
        """The sum of the times at which the files in the folder were changed last, which differs after a change, also
        if the clock was set back or differs from that of the machine that wrote the others."""
        total = 0
        for folder, _, files in os.walk(self.path):
            for name in files:
                with suppress(OSError):
                    total += os.stat(os.path.join(folder, name)).st_mtime_ns
        return total

    def command(self, devices: str, workers: int | None = None) -> list[str]:
        """The command of the run, to be called in its folder: paths within the grid are relative."""
        run = self.run
        of_features = run.step.source == "features" and run.parent is not None
        data = features_in(self.root / run.parent.name / RUN) if of_features and run.parent else run.data
        beside = os.path.join("..", run.parent.name, RUN) if run.parent else ""
        source = "" if of_features else self._link() or run.weights or beside
        words = [sys.executable, "-m", "densepath", *(run.step.command or run.verb).split()]
        words.append(f"--data={os.path.join(beside, data.name) if isinstance(data, Path) else data}")
        words += [f"--{name}={path}" for name, path in run.inputs.items()]
        words += [f"--seed={run.seed}"] if run.step.draws else []
        return [*words, f"--devices={run.step.device(devices)}", *run.step.words(run.options, str(source), workers)]

    def begin(self, command: list[str], hardware: str) -> None:
        """Record the run before it starts."""
        notes = self.notes()
        run = self.run
        notes |= {
            "digest": run.digest,
            "identity": dict(run.identity),
            "data": run.data,
            "weights": run.parent.name if run.parent else run.weights,
            "command": command,
            "densepath": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "hardware": hardware,
            "started": notes.get("started") or _now(),
        }
        notes.pop("error", None)
        if link := self._link():
            (self.path / link).unlink(missing_ok=True)
            (self.path / link).symlink_to(str(run.weights))
        if run.step.recipes is not None:
            with atomic_write(self.path / OPTIONS) as part:
                part.write_text(yaml.safe_dump(dict(run.options), sort_keys=False))
        self._write(notes)

    def _link(self) -> Path | None:
        """A link in the folder to weights elsewhere: a stopped run can be resumed after they have moved."""
        weights = self.run.weights or ""
        return Path(f"weights{Path(weights).suffix}") if is_on_disk(weights) else None

    def pause(self, seconds: float, error: str | None = None) -> None:
        """Record that the run ended before it was done, and how long it ran."""
        notes = self.notes()
        notes["seconds"] = notes.get("seconds", 0.0) + seconds
        if error:
            notes["error"] = error
        self._write(notes)

    def finish(self, seconds: float) -> dict[str, Any]:
        """Record the result of a run that has ended successfully.

        Raises:
            UserError: it has no result.
        """
        try:
            result = self.run.step.result(self.path)
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise UserError(f"{self.path} holds no result ({error}); see {self.path / LOG}") from error
        notes = self.notes()
        notes |= {"seconds": notes.get("seconds", 0.0) + seconds, "finished": _now(), "result": result, **SCALE}
        self._write(notes)
        for pattern in self.run.step.scratch:
            for folder in (self.path / RUN).glob(pattern):
                shutil.rmtree(folder, ignore_errors=True)
        return result

    def last_message(self) -> str:
        """The last line of the log, with the weights named as the user named them."""
        try:
            lines = (self.path / LOG).read_text(errors="replace").splitlines()
        except OSError:
            return ""
        message = next((line for line in reversed(lines) if line.strip()), "").removeprefix("densepath: error: ")
        link = self._link()
        return message if link is None else message.replace(str(link), str(self.run.weights))

    def _write(self, notes: Mapping[str, Any]) -> None:
        with atomic_write(self.path / NOTES) as part:
            part.write_text(json.dumps(notes, indent=2) + "\n")


def lock_for_job(folder: Path) -> int:
    """Lock a run's folder for a job and its command, which inherits the descriptor. A job that was submitted twice
    waits here for the other one: the process that submits a job may end long before the job does."""
    while (descriptor := _locked(folder / _JOB_LOCK)) is None:
        time.sleep(_POLL)
    return descriptor


def _locked(path: Path) -> int | None:
    """The descriptor of a lock file, once it is locked; None if another process has locked it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in NO_LOCKS:
            say(f"densepath: the file system of {path.parent} has no locks; do not start this table twice")
            return descriptor
        os.close(descriptor)
        if not isinstance(error, BlockingIOError):
            raise
        return None
    return descriptor


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
