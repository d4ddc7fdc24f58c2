"""Results of a function that reads files, computed by threads that never block the exit of the process."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import islice
from queue import SimpleQueue
from types import TracebackType
from typing import Any, TypeVar

from densepath.core.waiting import HANGING_READER, wait_for

A = TypeVar("A")
T = TypeVar("T")

_PATIENCE = 5.0  # seconds that threads have to end after an error


def in_threads(
    function: Callable[[A], T],
    items: Iterable[A],
    threads: int,
    what: str,
    sign: Callable[[], Any] = lambda: None,
    ahead: Callable[[], int] = lambda: 0,
) -> Iterator[T]:
    """A function's results for items, in their order, computed ahead.

    A pool of ``concurrent.futures`` would wait for its threads when the process exits, even for one that hangs.

    Args:
        function: called in one of the threads; its exception is raised here, at its position.
        items: consumed a few ahead.
        threads: number of threads.
        what, sign: as for :func:`~densepath.core.waiting.wait_for`.
        ahead: how many results may wait for the caller now; at least a few for each thread do.

    Raises:
        Stuck: a result does not come within the limit.
    """
    work: SimpleQueue[tuple[Future[T], A] | None] = SimpleQueue()
    pool = [threading.Thread(target=_run, args=(function, work), daemon=True) for _ in range(threads)]
    for thread in pool:
        thread.start()
    pending: deque[Future[T]] = deque()
    left = iter(items)
    patience = 0.0
    try:
        while True:
            for item in islice(left, max(ahead(), 2 * threads + 1) - len(pending)):
                pending.append(Future())
                work.put((pending[-1], item))
            if not pending:
                return
            wait_for(_done(pending[0]), what, HANGING_READER, sign)
            patience = _PATIENCE
            yield pending.popleft().result()
            patience = 0.0
    finally:
        for future in pending:
            future.cancel()
        for _ in pool:
            work.put(None)
        end = time.monotonic() + patience
        for thread in pool:
            thread.join(max(0.0, end - time.monotonic()))


def _run(function: Callable[[A], T], work: SimpleQueue[tuple[Future[T], A] | None]) -> None:
    while (job := work.get()) is not None:
        future, item = job
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(function(item))
            except BaseException as error:
                future.set_exception(error)


def _done(future: Future[T]) -> Callable[[float], None]:
    """An attempt for :func:`wait_for`. (``Future.result`` would confuse the function's own TimeoutError.)"""

    def attempt(seconds: float) -> None:
        if not wait([future], seconds).done:
            raise TimeoutError

    return attempt


class OneBehind:
    """Work in another thread, one item at a time, while the caller computes the next item.

    An error of the work is raised by the next call, or at the end of the block.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1)
        # Futures are popped: a variable in an exception's frame would keep the thread alive.
        self._pending: list[Future[object]] = []

    def __enter__(self) -> OneBehind:
        return self

    def submit(self, function: Callable[..., object], *values: Any) -> None:
        """Call a function with values in the other thread, once the former call has ended."""
        self._wait()
        self._pending.append(self._pool.submit(function, *values))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._wait()
        finally:
            self._pool.shutdown()

    def _wait(self) -> None:
        if self._pending:
            self._pending.pop().result()
