"""Work on many named items that any number of processes and machines share through a folder."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from densepath.core.errors import UserError, one_line
from densepath.core.files import writing
from densepath.core.locks import NO_LOCKS, Held, hold, shared_work, signs_of_life, touched
from densepath.core.system import slurm_tasks
from densepath.core.waiting import Wait, progress

LOCKS = ".locks"
_LOOK = 0.2  # seconds between two looks at what other processes do
_WHOLE = re.compile(r"\d+")


@dataclass(frozen=True)
class Shard:
    """One of several equal shares of the work.

    Args:
        number: which one, from 0.
        count: how many there are.
    """

    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.number + 1}/{self.count}"

    @classmethod
    def of(cls, text: str | None) -> Shard | None:
        """A share given as "2/8", the second of eight; without one, that of a process of torchrun or srun.

        Returns:
            None if this process has all the work.

        Raises:
            UserError: the text is not a share.
        """
        if text is None:
            return cls._of_launcher()
        first, _, last = str(text).partition("/")
        number, count = (int(part) if _WHOLE.fullmatch(part.strip()) else 0 for part in (first, last))
        if not 1 <= number <= count:
            raise UserError(f"shard is {text!r}; give for instance 2/8 for the second of eight: 1/8 to 8/8")
        return cls(number - 1, count)

    @classmethod
    def _of_launcher(cls) -> Shard | None:
        """The share of one of the processes of a job.

        The tasks of a job array may have different work, such as folds, so that they share by locks only.
        """
        rank, ranks = _number("RANK"), _number("WORLD_SIZE")
        if rank is None or ranks is None:
            rank, ranks = _number("SLURM_PROCID"), slurm_tasks()
        return cls(rank, ranks) if rank is not None and rank < ranks and ranks > 1 else None


@contextmanager
def same_input(folder: Path, given: Any) -> Iterator[None]:
    """Fill a folder together with the processes that were given the same; refuse to do so while others fill it.

    The operating system releases the lock of a process that ends, however it ends.

    Args:
        folder: where all processes put their locks, in the subfolder ``.locks``.
        given: what must be the same in all processes that work at the same time, for JSON.

    Raises:
        UserError: a process that was given something else is at work.
    """
    digest = hashlib.sha256(json.dumps(given).encode("utf-8", "surrogateescape")).hexdigest().encode()
    path = folder / LOCKS / "input"
    with shared_work(folder / LOCKS / "start", "start"), writing(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _agree(folder, descriptor, digest)
        except BaseException:
            os.close(descriptor)
            raise
    try:
        yield
    finally:
        os.close(descriptor)


def _agree(folder: Path, descriptor: int, digest: bytes) -> None:
    """Lock an open file together with others, as the first who writes the digest, or else if it is the same."""
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in NO_LOCKS:
            return
        if os.pread(descriptor, len(digest), 0) != digest:
            raise UserError(
                f"another process fills {folder} from other data or with other options; use another folder, or wait "
                "until it has ended"
            ) from None
    else:
        os.pwrite(descriptor, digest, 0)
    fcntl.lockf(descriptor, fcntl.LOCK_SH)


def claimed(
    folder: str | Path, names: Sequence[str], is_done: Callable[[str], bool], shard: Shard | None = None
) -> Generator[str]:
    """Yield the items that are not done, each locked for this process until the next one is asked for.

    The operating system releases the lock of a process that ends, however it ends. Items that other processes hold are
    passed over; in the end they are waited for, and done here if their process has died. An item is yielded once, even
    if it is not done afterwards. Close the generator (``contextlib.closing``) to release the last lock after an error.

    Args:
        folder: where all processes put their locks, in the subfolder ``.locks``.
        names: the items, the same in all processes.
        is_done: whether an item is done, from what is on disk.
        shard: the share of this process; None for all items.

    Raises:
        Stuck: other processes hold items, but give no sign of life for too long.
    """
    locks = Path(folder) / LOCKS
    with writing(locks):
        locks.mkdir(parents=True, exist_ok=True)
    left = list(names if shard is None else names[shard.number :: shard.count])
    wait: Wait | None = None
    while left:
        held: dict[str, Held] = {}
        for name in left:
            if is_done(name):
                continue
            path = _lock_of(locks, name)
            try:
                release = hold(path)
            except Held as holder:
                held[name] = holder
                continue
            try:
                if not is_done(name):  # another process may just have finished it
                    wait = None
                    with signs_of_life(path):
                        yield name
            finally:
                release()
            progress(1)
        left = list(held)
        if left:
            wait = wait or _wait_for(locks, held)
            progress(1)
            time.sleep(_LOOK)
            wait.check()


def _wait_for(locks: Path, held: Mapping[str, Held]) -> Wait:
    """A wait that ends when no lock is released or touched for too long."""
    paths = [_lock_of(locks, name) for name in held]
    name, holder = next(iter(held.items()))
    what = f"{one_line(name)}{f' and {len(held) - 1} more' if len(held) > 1 else ''} from other processes"
    remedy = f"{holder} holds it, but does not respond; end it, then start again"
    return Wait(what, remedy, sign=lambda: [touched(path) for path in paths])


def _lock_of(locks: Path, name: str) -> Path:
    """A name of any length and with any characters as that of a file."""
    return locks / hashlib.sha256(os.fsencode(name)).hexdigest()[:24]


def _number(variable: str) -> int | None:
    text = os.environ.get(variable, "")
    return int(text) if _WHOLE.fullmatch(text) else None
