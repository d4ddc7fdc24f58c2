"""The progress of a run: a bar in a terminal or a notebook, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import suppress

from rich.progress import BarColumn, ProgressColumn, Task, TextColumn
from rich.progress import Progress as RichProgress
from rich.table import Column
from rich.text import Text

from densepath.core.log import log
from densepath.core.stopwatch import Stopwatch, clock
from densepath.core.streams import is_animated, open_console
from densepath.core.streams import say as say
from densepath.core.system import SECONDS_BETWEEN_LINES


class _Measurements(ProgressColumn):
    """The newest measurements, cut where space is missing."""

    def render(self, task: Task) -> Text:
        return Text(task.fields["text"], no_wrap=True, overflow="ellipsis")


class _Times(ProgressColumn):
    """The time since the first step, and the time left."""

    def render(self, task: Task) -> Text:
        left = "-:--" if task.time_remaining is None else clock(task.time_remaining)
        return Text(f"{clock(task.elapsed or 0)}  ETA {left}")


class Progress:
    """Shows steps, measurements and the time left: a bar in a terminal and a notebook, lines elsewhere and in the log.

    A closed terminal does not stop the run.

    Args:
        start, total: number of optimizer steps done before, and of the whole run.
        shown: whether this process shows its progress.
    """

    def __init__(self, start: int, total: int, shown: bool = True) -> None:
        self._start, self._total = start, total
        self._shown = shown
        self._watch = Stopwatch()
        self._began = self._line_at = self._watch.read()
        self._text = ""
        self._bar: RichProgress | None = None
        console = open_console(sys.stderr)
        if shown and is_animated(console):
            self._bar = RichProgress(
                TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
                BarColumn(bar_width=None, table_column=Column(ratio=1)),
                _Measurements(table_column=Column()),  # the only one that becomes narrower
                _Times(),
                console=console,
                expand=True,
                refresh_per_second=2,
                get_time=Stopwatch().read,
            )
            self._task = self._bar.add_task("", total=total, completed=start, text="")

    def begin(self) -> None:
        """The first step begins: the time until now does not count in the estimate of the time left."""
        self._began = self._line_at = self._watch.read()
        if self._bar is not None:
            with suppress(OSError, ValueError):
                self._bar.start()

    def step(self, step: int, row: Mapping[str, float] | None = None) -> None:
        """Show that ``step`` optimizer steps are done; ``row`` holds new measurements, if there are any."""
        if not self._shown:
            return
        if row is not None:
            self._text = _describe(row)
        if self._bar is not None:
            self._bar.update(self._task, completed=step, text=self._text)
        now = self._watch.read()
        first = row is not None and self._line_at == self._began
        if first or now - self._line_at >= SECONDS_BETWEEN_LINES or step == self._total:
            self._line_at = now
            left = (now - self._began) / max(step - self._start, 1) * (self._total - step)
            line = f"step {step}/{self._total}  {self._text}  ETA {clock(left)}"
            say(line) if self._bar is None else log(line)

    def note(self, what: str) -> None:
        """Show what is done between two steps, if it takes long."""
        now = self._watch.read()
        if self._bar is not None:
            self._bar.update(self._task, text=what)
        elif self._shown and now - self._line_at >= SECONDS_BETWEEN_LINES:
            self._line_at = now
            say(what)

    def close(self) -> None:
        """Restore the terminal."""
        if self._bar is not None:
            with suppress(OSError, ValueError):
                self._bar.stop()


def _describe(row: Mapping[str, float]) -> str:
    waiting = f"data wait {row['waiting']:.0%}"
    # Of several losses the last one is the most important.
    relative = [name for name in row if name.endswith("_vs_chance")][-1:]
    chance = "".join(f"  {n.removesuffix('_vs_chance').replace('_', ' ')} {row[n]:.2f} of chance" for n in relative)
    return f"loss {row['loss']:.4f}{chance}  {row['images_per_second']:.1f} images/s  {waiting}"
