"""Making things ahead of time, in a thread of its own."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Generator, Iterator
from queue import SimpleQueue
from typing import TypeVar

T = TypeVar("T")


def ahead(items: Generator[T, None, None], depth: int) -> Iterator[T]:
    """Iterate over ``items`` in another thread, at most ``depth`` items ahead of the consumer.

    An exception there is raised here, in its turn. Closing this generator, or dropping it, ends the thread and closes
    ``items``.
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

    thread = threading.Thread(target=work, name="densepath-prefetch", daemon=True)
    thread.start()
    try:
        while (item := made.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            room.release()
            yield item[0]
    finally:
        stopped.set()
        room.release()
        thread.join()
        items.close()


def _forget_frames(error: BaseException | None) -> None:
    """Empty the frames that an error came through: they would keep worker processes alive as long as the error."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
