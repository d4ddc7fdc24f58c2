"""Records the measurements of a run: in a CSV file, in loggers, and as progress for the user."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from densepath.core.errors import UserError, unwrapped
from densepath.core.streams import say
from densepath.runs.metrics import METRICS, MetricsFile
from densepath.runs.progress import Progress
from densepath.training.loggers import Logger, make_loggers


class Recorder:
    """Records measurements on the first process; does nothing on the others.

    Args:
        out: the run folder.
        start, total: number of optimizer steps done before, and of the whole run.
        first: whether this is the first process.
        loggers: the names of loggers besides the CSV file.
        name: name of the run in the loggers.
        logged: whether a row of the step that the run continues from was due.
    """

    def __init__(
        self, out: Path, start: int, total: int, *, first: bool, loggers: Sequence[str], name: str, logged: bool = False
    ) -> None:
        self._failed: list[Logger] = []
        self._loggers: list[Logger] = make_loggers(loggers, out, name, start) if first else []
        self._metrics = MetricsFile(out / METRICS, start) if first else None
        if self._metrics is not None and logged and self._metrics.newest < start:
            lost = f"{out / METRICS} has lost its rows after step {self._metrics.newest}"
            say(f"densepath: warning: {lost}, as after a power cut; the run continues from step {start}")
        self._warned: set[str] = set()
        self.progress = Progress(start, total, shown=first)

    def write(self, step: int, row: Mapping[str, float]) -> None:
        """Record the measurements of a step, if there are any.

        Raises:
            UserError: the CSV file is damaged.
        """
        if not row or self._metrics is None:
            return
        with self._continuing():
            self._metrics.write({"step": step, **row})
        self._for_each_logger(lambda logger: logger.log(row, step))

    def flush(self) -> None:
        """Write the rows that could not be written before: a run that continues after this step does not repeat them.

        Raises:
            UserError: as for :meth:`write`.
        """
        if self._metrics is not None:
            with self._continuing():
                self._metrics.flush()

    def warn(self, lines: Sequence[str]) -> None:
        """Print warnings that were not printed before."""
        new = [line for line in lines if line not in self._warned] if self._metrics is not None else []
        self._warned.update(new)
        for line in new:
            say(f"densepath: warning: {line}")

    def picture(self, step: int, path: Path) -> None:
        """Pass a picture to the loggers."""
        self._for_each_logger(lambda logger: logger.picture(path, step))

    def close(self) -> None:
        """Finish the files, and restore the terminal. Errors as for :meth:`write`."""
        self.progress.close()
        self._for_each_logger(lambda logger: logger.close())
        for logger in self._failed:
            with suppress(Exception):  # its first error is printed
                logger.close()
        if self._metrics is not None:
            lost = f"its rows from step {self._metrics.unwritten} are lost"
            with self._continuing(lost):
                self._metrics.flush()

    @contextmanager
    def _continuing(self, outcome: str = "the run continues, and tries again with its next row") -> Iterator[None]:
        """The run does not end because the CSV file cannot be written: its next checkpoint may succeed.

        It ends with a damaged file, which takes no further rows before the user has corrected it.
        """
        try:
            yield
        except (UserError, OSError) as error:
            if not isinstance(error, OSError) and not isinstance(error.__cause__, OSError):
                raise
            self.warn([f"{_reason(error)}; {outcome}"])

    def _for_each_logger(self, act: Callable[[Logger], None]) -> None:
        """Let each logger do something; the run continues without one that fails."""
        for logger in list(self._loggers):
            try:
                act(logger)
            except Exception as error:  # whatever a full disk or a lost network raises
                self._loggers.remove(logger)
                self._failed.append(logger)
                self.warn([f"{_reason(error)}; the run continues without {logger.name}"])


def _reason(error: Exception) -> str:
    """What an error says, without the remedy of one that would have ended the run."""
    text = unwrapped(str(error)) or type(error).__name__
    return text.rpartition("; ")[0] or text if isinstance(error, UserError) else text
