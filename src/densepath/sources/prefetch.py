"""Prefetching items in a background thread."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable, Generator
from queue import Empty, SimpleQueue
from typing import TypeVar

from densepath.core.waiting import HANGING_READER, wait_for

T = TypeVar("T")

_PATIENCE = 5.0  # seconds that the thread has to end
_REMEDY = HANGING_READER.replace("start again", "continue with --resume")


def ahead(
    items: Generator[T, None, None],
    depth: int,
    what: str = "image data",
    abandon: Callable[[], None] = lambda: None,
    remedy: str = _REMEDY,
) -> Generator[T, None, None]:
    """Iterate over ``items`` in another thread, at most ``depth`` items ahead of the consumer.

    An exception there is raised here, at its position in the sequence. Closing or deleting this generator ends the
    thread and closes ``items``; a thread that does not end in time is abandoned.

    Args:
        items: the items to produce.
        depth: maximum number of items that are ready.
        what: name of the items, for messages about waiting.
        abandon: frees the resources of a thread that does not end.
        remedy: what to do if no item comes; by default, for a run.

    Raises:
        Stuck: no item came within the limit of :func:`~densepath.core.waiting.wait_for`.
    """
    made: SimpleQueue[tuple[T] | BaseException | None] = SimpleQueue()  # None at the end
    room = threading.Semaphore(depth)
    stopped = threading.Event()

    def work() -> None:
        try:
            while True:
                room.acquire()
                if stopped.is_set():
                    return
                made.put((next(items),))
        except StopIteration:
            made.put(None)
        except BaseException as error:
            _forget_frames(error)
            made.put(error)

    def take(seconds: float) -> tuple[T] | BaseException | None:
        try:
            return made.get(timeout=seconds)
        except Empty:
            raise TimeoutError from None

    thread = threading.Thread(target=work, name="densepath-prefetch", daemon=True)
    thread.start()
    waiting = False
    try:
        while True:
            waiting = True
            item = wait_for(take, what, remedy)
            waiting = False
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            room.release()
            yield item[0]
    finally:
        stopped.set()
        room.release()
        thread.join(0.0 if waiting else _PATIENCE)
        if thread.is_alive():
            abandon()
        else:
            items.close()


def _forget_frames(error: BaseException | None) -> None:
    """Clear the frames of an error's traceback: they would keep worker processes alive as long as the error."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
