"""Open slides of other libraries, of which a process keeps the most recent ones."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from densepath.sources.slides.file_parts import FileParts


class Handles:
    """Open slides, the least recently used of which are closed when their last reader is done.

    Args:
        opener: opens a slide.
        most: slides that are kept open; each takes files and a few MB.

    Attributes:
        reading: held while a handle of a library that is not thread-safe is used.
    """

    def __init__(self, opener: Callable[[str], Any], most: int = 64) -> None:
        self._opener, self._most = opener, most
        self._inherited: list[Any] = []
        self._start()
        os.register_at_fork(after_in_child=self._after_fork)

    def _start(self) -> None:
        self._lock, self.reading = threading.Lock(), threading.Lock()
        self._handles: OrderedDict[FileParts, Any] = OrderedDict()

    def _after_fork(self) -> None:
        """Open all again in a forked process, and never close those that the parent's threads may be using."""
        self._inherited.append(self._handles)
        self._start()

    def get(self, file: FileParts) -> Any:
        """An open slide. Raises what the opener raises."""
        with self._lock:
            if file not in self._handles:
                self._handles[file] = self._opener(file.path)
                if len(self._handles) > self._most:
                    self._handles.popitem(last=False)
            self._handles.move_to_end(file)
            return self._handles[file]

    def drop(self, file: FileParts) -> None:
        """Open a slide again for its next part: an error can make a handle useless."""
        with self._lock:
            self._handles.pop(file, None)
