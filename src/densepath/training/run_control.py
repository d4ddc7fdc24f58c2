"""Decides with the other processes of a run when to save and when to stop, also while this process waits."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from densepath.core.distributed import rank, world_size
from densepath.core.streams import say
from densepath.core.waiting import Stuck, notice_seconds, progress
from densepath.methods.base import Heartbeat
from densepath.runs.folder import stopped_early
from densepath.runs.signals import Interrupted, StopSignals
from densepath.training.intervals import Intervals, due
from densepath.training.meter import Meter
from densepath.training.nonfinite import all_finite
from densepath.training.processes import agree
from densepath.training.recorder import Recorder
from densepath.training.saver import Saver
from densepath.training.task import Task


class RunControl:
    """Saves and stops a run at the right moments, from its first or its resumed step to its last.

    Args:
        task: what is trained.
        out: the run folder.
        saver, meter, recorder, signals, intervals: those of the run.
        device: the device of this process.
        total: optimizer steps of the whole run.
    """

    def __init__(
        self,
        task: Task,
        out: Path,
        saver: Saver,
        meter: Meter,
        recorder: Recorder,
        signals: StopSignals,
        intervals: Intervals,
        device: torch.device,
        total: int,
    ) -> None:
        self._task, self._out = task, out
        self._saver, self._meter, self._recorder = saver, meter, recorder
        self._signals, self._intervals, self._device, self._total = signals, intervals, device, total
        self._finished: int | None = None  # the number of finished steps, between two steps

    def feed(self, batches: Iterable[Any]) -> Generator[Any]:
        """The batches. The run begins with the first: only then has the loader drawn what it draws when it starts."""
        iterator = iter(batches)
        try:
            batch = next(iterator)
            self._meter.restart()
            self._saver.begin(self._device)
            self._recorder.progress.begin()
            yield batch
            yield from self._meter.timed(iterator)
        finally:
            getattr(iterator, "close", lambda: None)()

    def between_steps(self, step: int) -> None:
        """``step`` steps are done and none is in progress: the run can be saved now."""
        self._finished = step
        progress(1)

    def in_step(self) -> None:
        """A step is in progress: the run cannot be saved until it is done."""
        self._finished = None
        progress(1)

    def agree(self, done: int) -> tuple[bool, bool, int]:
        """What is due after ``done`` steps: whether to log, whether to save, and the signal to stop by, or 0.

        All processes get the same answer: a signal or a checkpoint that is due on one of them counts for all. After the
        last step :meth:`stop_if_asked` stops the run.
        """
        last = done == self._total
        logs = due(done, self._intervals.log_every) or last
        saves = due(done, self._intervals.save_every_steps) or last
        stop = 0
        if logs or saves or world_size() == 1:
            late = 0 < self._intervals.save_every_minutes <= self._saver.minutes()
            stop, late_anywhere = agree(self._device, self._signals.received or 0, int(late))
            saves = saves or bool(late_anywhere) or stop > 0
        return logs, saves, 0 if last else stop

    def stop_if_asked(self) -> None:
        """Stop all processes if a signal asked any of them to.

        After the last step, too: a signal in it, or in its evaluation, would be lost otherwise, and the trainings that
        may follow this one would not stop.

        Raises:
            Interrupted: a signal asked any of the processes to stop.
        """
        stop = agree(self._device, self._signals.received or 0)[0]
        if stop:
            raise Interrupted(stop)

    @contextmanager
    def long_work(self) -> Iterator[Heartbeat]:
        """For long work of all processes before a step: it does not count as training time, and a signal stops it.

        The run is saved first.

        Yields:
            The heartbeat: all processes call it equally often, with a few words for the user.

        Raises:
            Interrupted: by the heartbeat, if a signal asked any of the processes to stop.
        """

        def heartbeat(what: str) -> None:
            progress(1)
            self._recorder.progress.note(what)
            self.stop_if_asked()

        with self._meter.paused():
            # NaN and Inf are reported by the next step.
            new = self._finished is not None and self._saver.saved != self._finished
            if new and not agree(self._device, int(not all_finite(self._task)))[0]:
                self._saver.save(self._finished or 0)
            yield heartbeat

    def while_waiting(self, what: str, waited: float) -> None:
        """Stop if a signal asked to, while this process waits for something.

        A single process between two steps stops at once, because nothing is lost. Otherwise the data gets some more
        time to arrive, so that the step can be finished and saved.

        Raises:
            Interrupted: a signal was received.
        """
        signum = self._signals.received
        if signum and (waited >= notice_seconds() or (world_size() == 1 and self._finished is not None)):
            raise Interrupted(signum)

    @contextmanager
    def save_before_stopping(self) -> Iterator[None]:
        """If a run must end while it waits between two steps, save it first and print how to resume it."""
        try:
            yield
        except (Interrupted, Stuck) as stop:
            if self._may_save():
                self._saver.save(self._finished or 0)
            if isinstance(stop, Interrupted) and rank() == 0:
                self._recorder.progress.close()
                saved = self._saver.saved
                how = f"; the same command with --resume continues {self._out}" if self._signals.resumable else ""
                done = f"densepath: stopped and saved at step {saved}{how}"
                say(done if saved >= 0 else stopped_early(self._out))
            raise

    def _may_save(self) -> bool:
        """Whether there is anything new that a single process can save between two steps."""
        done = self._finished
        if done is None or done <= max(self._saver.saved, self._saver.start) or world_size() > 1:
            return False
        return self._meter.not_finite() is None and all_finite(self._task)
