"""All images of a source, one after another."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy.typing as npt

from densepath.core.system import usable_cores, with_progress
from densepath.sources.corrupt import SHOWN, CorruptImage, CorruptLog
from densepath.sources.pixel_source import PixelSource

_MOST_THREADS = 32


def read_all(images: PixelSource, corrupt: CorruptLog, what: str, start: int = 0) -> Iterator[npt.NDArray[Any] | None]:
    """Read a source with threads, in order, starting at the position ``start``; None for a corrupt image.

    A progress bar is labelled ``what``.

    Raises:
        UserError: too many images are corrupt.
    """
    threads = min(_MOST_THREADS, usable_cores())
    pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
    pending: deque[Future[npt.NDArray[Any]]] = deque()
    try:
        for position in with_progress(range(start, len(images)), len(images) - start, what):
            while len(pending) <= 2 * threads and position + len(pending) < len(images):
                pending.append(pool.submit(images.read, position + len(pending)))
            try:
                yield pending.popleft().result()
            except CorruptImage as error:
                corrupt.add(position, str(error))
                if len(corrupt.found) >= SHOWN:  # with fewer, read on to complete the list
                    corrupt.check()
                yield None
        corrupt.check()
    finally:
        pool.shutdown(cancel_futures=True)
