"""Shared work in several processes of this machine, one of which may die without ending the rest."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from densepath.core.errors import UserError
from densepath.core.shared_work import Shard, claimed
from densepath.core.signals import unwind
from densepath.core.system import with_progress
from densepath.core.waiting import Wait, limit_seconds, progress

_LOOK = 0.2  # seconds between two looks at the work, or a millisecond for each item
_BEAT = 5.0  # seconds between two signs of progress
_PATIENCE = 5.0  # seconds that a process has to end


def share_work(
    folder: Path,
    names: Sequence[str],
    is_done: Callable[[str], bool],
    work: Callable[[str], None],
    *,
    workers: int,
    what: str,
    give_up: Callable[[str, str], None],
    shard: Shard | None = None,
) -> None:
    """Do the items that are not done, in processes of their own, together with other commands that share the folder.

    Args:
        folder, names, is_done, shard: as for :func:`~densepath.core.shared_work.claimed`.
        work: does an item; a UserError ends all work.
        workers: number of processes; 0 does all in this one.
        what: for the progress: "tiling slides".
        give_up: called with an item that has ended two processes, and the reason; afterwards it must be done.

    Raises:
        UserError: that of ``work``.
        Stuck: no process makes progress (:func:`~densepath.core.waiting.progress`) for too long.
    """
    share = list(names if shard is None else names[shard.number :: shard.count])
    left = [name for name in share if not is_done(name)]
    if not left:
        return
    if not workers:
        with closing(claimed(folder, left, is_done)) as mine:
            for name in with_progress(mine, len(left), what):
                work(name)
        return
    with _Processes() as processes:
        for _ in range(min(workers, len(left))):
            processes.start(partial(_do_all, folder, left, is_done, work))
        for _ in with_progress(processes.watch(left, is_done), len(left), what):
            pass
        # Items that other processes hold are waited for; what is then left has ended its process.
        with closing(claimed(folder, left, is_done)) as lost:
            for name in lost:
                alone = processes.start(partial(work, name))
                list(processes.watch([name], is_done))
                if not is_done(name):
                    give_up(name, f"reading it ends the process ({_reason(alone.exitcode)})")


def _do_all(folder: Path, names: Sequence[str], is_done: Callable[[str], bool], work: Callable[[str], None]) -> None:
    parent = os.getppid()
    with closing(claimed(folder, names, is_done)) as mine:
        for name in mine:
            work(name)
            if os.getppid() != parent:  # killed
                return


class _Processes:
    """Forked processes, which end with the block."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("fork")
        self._running: list[tuple[BaseProcess, Connection, Any]] = []

    def __enter__(self) -> _Processes:
        return self

    def __exit__(self, *error: object) -> None:
        for process, *_ in self._running:
            process.terminate()
        for process, *_ in self._running:
            process.join(_PATIENCE)
            process.kill()

    def start(self, work: Callable[[], None]) -> BaseProcess:
        """Start a process."""
        receiver, sender = self._context.Pipe(duplex=False)
        made = self._context.RawValue("Q", 0)
        process = self._context.Process(target=_run, args=(work, sender, made), daemon=True)
        process.start()
        sender.close()
        self._running.append((process, receiver, made))
        return process

    def watch(self, names: Sequence[str], is_done: Callable[[str], bool]) -> Iterator[str]:
        """Yield items as they are finished, until all are or all processes have ended. Raises their errors."""
        left, wait = dict.fromkeys(names), self._wait()
        while left:
            alive = any(process.is_alive() for process, *_ in self._running)
            for name in [name for name in left if is_done(name)]:
                del left[name]
                wait = self._wait()
                yield name
            self._raise_errors()
            if not alive:
                return
            time.sleep(max(_LOOK, len(left) * 1e-3))
            wait.check()

    def _wait(self) -> Wait:
        """A wait for the next result, as long as the processes show progress."""
        return Wait("results of worker processes", sign=lambda: [made.value for *_, made in self._running])

    def _raise_errors(self) -> None:
        for process, receiver, _ in self._running:
            try:
                message = receiver.recv() if receiver.poll() else ""
            except EOFError:  # it has ended
                message = ""
            if message:
                raise UserError(message)
            if process.exitcode == 1:
                raise RuntimeError("a worker process has failed; its error is above")


def _run(work: Callable[[], None], sender: Connection, made: Any) -> None:
    """The main function of a process, which shows its progress in a shared number."""
    threading.Thread(target=_show_progress, args=(made,), daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends this process
    signal.signal(signal.SIGTERM, unwind)
    try:
        work()
    except UserError as error:
        sender.send(f"{error}{error.remedy}")
    except SystemExit:
        sys.exit(0)


def _show_progress(made: Any) -> None:
    while True:
        made.value = progress()
        time.sleep(min(_BEAT, limit_seconds() / 4))


def _reason(code: int | None) -> str:
    """Why a process has ended, from its exit code."""
    if code is not None and code < 0:
        return signal.Signals(-code).name
    return f"exit code {code}"
