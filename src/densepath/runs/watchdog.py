"""A thread that checks whether the other processes of a run are alive, while the main thread waits for them.

In a collective operation the main thread does not run Python code: it can neither report that it waits, nor handle a
signal, nor give up. This thread can.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from types import TracebackType

import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store

from densepath.core.streams import flush_streams, write_line
from densepath.core.waiting import limit_seconds, notice_seconds, progress
from densepath.runs.checkpoints import CHECKPOINTS, has_checkpoint
from densepath.runs.signals import StopSignals

_KEY = "densepath/heartbeat"
_EXIT_USER = 2
_SUSPENDED = 5.0  # seconds by which the watchdog is late if this process was suspended
_GRACE = 10.0  # seconds that the main thread has to notice by itself that another process has died
PARENT = "DENSEPATH_PARENT"  # environment variable: the process that started this one


class Watchdog:
    """Monitors the processes of a run; does nothing if there is only one.

    A process is silent if it sends no heartbeat, whatever its main thread does: it is stopped, or its machine is down.
    A silent process is reported after :func:`~densepath.core.waiting.notice_seconds`. This process exits after
    :func:`~densepath.core.waiting.limit_seconds`, or when it receives a stop signal while another process is silent.
    If all processes send heartbeats, but none makes progress, because a main thread hangs, it exits after twice that.
    It exits soon if a process that it has started, or the one that has started it, is dead.

    Args:
        out: the run folder.
        rank, processes: rank of this process, and number of processes.
        signals: the stop signals.
    """

    def __init__(self, out: Path, rank: int, processes: int, signals: StopSignals) -> None:
        self._out, self._rank, self._processes, self._signals = out, rank, processes, signals
        self._children: Sequence[subprocess.Popen[bytes]] = ()
        self._notice, self._limit = notice_seconds(), limit_seconds()
        self._interval = min(1.0, self._notice / 5)
        self._done = threading.Event()
        self._heard: dict[int, tuple[bytes, float]] | None = None  # the last heartbeat of the others, and its time
        self._began = self._reported = self._moved = time.monotonic()
        self._own = progress()
        self._parent = os.environ.get(PARENT) if rank > 0 else None
        self._dead_since: float | None = None

    def __enter__(self) -> Watchdog:
        if self._processes > 1:
            self._signals.listen()
            threading.Thread(target=self._watch, name="densepath-watchdog", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        if error is not None:  # the others would wait for this process
            end = time.monotonic() + _GRACE
            for child in self._children:
                with suppress(subprocess.TimeoutExpired):
                    child.wait(max(0.0, end - time.monotonic()))
                child.kill()
                child.wait()

    def started(self, children: Sequence[subprocess.Popen[bytes]]) -> None:
        """Set the processes that this one has started; they are killed when it exits."""
        self._children = children

    def joined(self) -> None:
        """The processes have joined: from now on they send heartbeats."""
        if self._processes == 1:
            return
        now = self._moved = time.monotonic()
        self._heard = {rank: (b"", now) for rank in range(self._processes) if rank != self._rank}
        store = _get_default_store().clone()  # a connection of its own: the main thread may block the other one
        store.set_timeout(timedelta(seconds=self._limit))
        threading.Thread(target=self._beat, args=(store,), name="densepath-heartbeat", daemon=True).start()

    def _beat(self, store: dist.Store) -> None:
        """Send heartbeats, and read those of the others; blocks if the process that holds the store is stopped."""
        assert self._heard is not None
        begun: set[int] = set()
        number = 0
        while not self._done.wait(self._interval):
            number += 1
            try:
                store.set(f"{_KEY}/{self._rank}", f"{number} {progress()}")
                # Before its first heartbeat a process has no key, and reading it would wait.
                begun |= {rank for rank in self._heard.keys() - begun if store.check([f"{_KEY}/{rank}"])}
                signs = store.multi_get([f"{_KEY}/{rank}" for rank in begun])
            except RuntimeError:  # the process that holds the store is gone
                continue
            now = time.monotonic()
            for rank, sign in zip(begun, signs, strict=True):
                before = self._heard[rank][0]
                if sign != before:
                    self._heard[rank] = (sign, now)
                if sign.split()[1:] != before.split()[1:]:
                    self._moved = now

    def _watch(self) -> None:
        looked = time.monotonic()
        while not self._done.wait(self._interval):
            self._forgive(time.monotonic() - looked - self._interval)
            looked = time.monotonic()
            what, since = self._missing()
            waited = time.monotonic() - since
            if what and waited >= self._notice:
                if self._signals.heard() is not None and not self._done.wait(2 * self._interval):
                    self._end(128 + (self._signals.heard() or 0), f"stopped while waiting for {what}; {self._remedy()}")
                if waited >= self._limit:
                    late = "did not answer for" if self._heard else "have not begun within"
                    self._end(_EXIT_USER, f"error: {what} {late} {waited:.0f} s; {self._remedy()}")
                if time.monotonic() - self._reported >= self._notice:
                    self._reported = time.monotonic()
                    write_line(f"densepath: waiting for {what} since {waited:.0f} s", sys.stderr)
            self._check_progress()
            self._check_deaths()

    def _forgive(self, seconds: float) -> None:
        """Leave out the time for which this process was suspended: the others may have been, too."""
        if seconds < _SUSPENDED:
            return
        self._began, self._moved = self._began + seconds, self._moved + seconds
        if self._heard is not None:
            self._heard.update({rank: (sign, since + seconds) for rank, (sign, since) in self._heard.items()})

    def _check_progress(self) -> None:
        """Exit if no process has made progress for too long: the main thread of one of them hangs."""
        now = time.monotonic()
        if self._heard is None or self._own != progress():
            self._own, self._moved = progress(), now
        still = now - self._moved
        if still >= 2 * self._limit:
            self._end(
                _EXIT_USER,
                f"error: no process of this run has made progress for {still:.0f} s, so one of them hangs "
                f"(DENSEPATH_WAIT_LIMIT sets half of this time); {self._remedy()}",
            )

    def _check_deaths(self) -> None:
        """Exit if a process that this one has started, or the one that has started it, is dead.

        After the beginning the main thread gets some time to notice: its message has the reason.
        """
        if self._parent is not None and os.getppid() != int(self._parent):
            dead = "rank 0 of this run has ended"
        else:
            # A process may be done before this one.
            codes = {rank: code for rank, child in enumerate(self._children, 1) if (code := child.poll())}
            if not codes:
                return
            rank, code = next(iter(codes.items()))
            how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
            dead = f"rank {rank} of this run {how}{' before it began' if self._heard is None else ''}"
        self._dead_since = self._dead_since or time.monotonic()
        if self._heard is None or time.monotonic() - self._dead_since >= _GRACE:
            self._end(_EXIT_USER, f"error: {dead}; {self._remedy()}")

    def _missing(self) -> tuple[str, float]:
        """The processes that send no heartbeat, and since when; "" if all do."""
        if self._heard is None:
            return "the other processes", self._began
        now = time.monotonic()
        silent = {rank: since for rank, (_, since) in self._heard.items() if now - since >= self._notice}
        if not silent:
            return "", now
        if len(silent) == len(self._heard) and 0 in silent:
            silent = {0: silent[0]}  # which holds the heartbeats of all
        ranks = ", ".join(map(str, silent))
        return f"rank {ranks}" if len(silent) == 1 else f"ranks {ranks}", min(silent.values())

    def _remedy(self) -> str:
        saved = has_checkpoint(self._out / CHECKPOINTS)
        return f"{'continue' if saved else 'start again'} with --resume once all processes of the run are gone"

    def _end(self, code: int, why: str) -> None:
        """Exit this process, whatever its main thread waits for, and kill those that it started."""
        if self._done.is_set():
            return
        for child in self._children:
            child.kill()
        write_line(f"densepath: {why}", sys.stderr)
        flush_streams()
        os._exit(code)
