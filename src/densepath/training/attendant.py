"""What accompanies a run: agrees with the other processes when to save and to stop, and listens while it waits."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from densepath.core.distributed import rank, world_size
from densepath.core.streams import say
from densepath.core.waiting import Stuck, notice_seconds
from densepath.methods.base import Tick
from densepath.runs.signals import Interrupted, StopSignals
from densepath.training.intervals import Intervals, due
from densepath.training.meter import Meter
from densepath.training.nonfinite import all_finite
from densepath.training.processes import agree
from densepath.training.recorder import Recorder
from densepath.training.saver import Saver
from densepath.training.task import Task


class Attendant:
    """Accompanies a run from its first or its resumed step to its last.

    Args:
        task: what is trained.
        out: the run folder.
        saver, meter, recorder, signals, intervals: of the run.
        device: where it computes.
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
        self._between: int | None = None  # the steps that are done while none is under way
        self._said = 0.0

    def feed(self, batches: Iterable[Any]) -> Generator[Any]:
        """The batches. The run begins with the first: only then has the loader drawn what it draws when it starts."""
        iterator = iter(batches)
        try:
            batch = next(iterator)
            self._saver.restore_generators()
            self._meter.restart()
            self._recorder.progress.begin()
            yield batch
            yield from self._meter.timed(iterator)
        finally:
            getattr(iterator, "close", lambda: None)()

    def between(self, step: int) -> None:
        """So many steps are done, and none is under way: the run can be saved as it stands."""
        self._between = step

    def within(self) -> None:
        """A step is under way: until it is done the run cannot be saved."""
        self._between = None

    def agree(self, done: int) -> tuple[bool, bool, int]:
        """Whether measurements are due after so many steps, whether a checkpoint is, and the signal to stop by, or 0.

        Every process learns of a signal or a due checkpoint that any of them knows of.
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

    @contextmanager
    def long_work(self) -> Iterator[Tick]:
        """For long work of all processes before a step: it is no time of training, and a signal stops it.

        The run is saved first.

        Yields:
            What all processes call equally often, with words for the user.

        Raises:
            Interrupted: from that call, where a signal asked any of the processes to stop.
        """

        def tick(what: str) -> None:
            self._recorder.progress.note(what)
            stop = agree(self._device, self._signals.received or 0)[0]
            if stop:
                raise Interrupted(stop)

        with self._meter.paused():
            # What is not finite is reported by the step that follows.
            if self._between is not None and self._saver.saved != self._between and all_finite(self._task):
                self._saver.save(self._between)
            yield tick

    def while_waiting(self, what: str, waited: float) -> None:
        """Say what this process waits for, and stop where a signal asks to.

        Between the steps of a single process nothing is lost by that. Else there may be more to save once the data has
        come: it is given some time.

        Raises:
            Interrupted: a signal came.
        """
        if waited < self._said:
            self._said = 0.0  # another wait
        if waited - self._said >= notice_seconds():
            self._said = waited
            who = f"rank {rank()} is " if world_size() > 1 else ""
            say(f"densepath: {who}waiting for {what} since {waited:.0f} s")
        signum = self._signals.received
        if signum and (waited >= notice_seconds() or (world_size() == 1 and self._between is not None)):
            raise Interrupted(signum)

    @contextmanager
    def saved_where_it_stands(self) -> Iterator[None]:
        """A run that must end while it waits between two steps is saved before, and its user knows how to resume it."""
        try:
            yield
        except (Interrupted, Stuck) as stop:
            if self._may_save():
                self._saver.save(self._between or 0)
            if isinstance(stop, Interrupted) and rank() == 0:
                self._recorder.progress.close()
                saved = self._saver.saved
                done = f"stopped and saved at step {saved}" if saved >= 0 else "stopped before the first step"
                say(f"densepath: {done}; the same command with --resume continues {self._out}")
            raise

    def _may_save(self) -> bool:
        """Whether there is anything new to save, between two steps, that a single process can save."""
        done = self._between
        if done is None or done <= max(self._saver.saved, self._saver.start) or world_size() > 1:
            return False
        return self._meter.not_finite() is None and all_finite(self._task)
