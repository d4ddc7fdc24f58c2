"""What becomes of a run's measurements: a CSV file, loggers, and lines for its user."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from densepath.runs.metrics import MetricsFile
from densepath.runs.progress import Progress
from densepath.training.loggers import Logger, make_loggers


class Recorder:
    """Writes measurements down; on all processes but the first it does nothing.

    Args:
        out: the run folder.
        start, total: optimizer steps done before, and of the whole run.
        first: whether this is the first process.
        loggers: the names of loggers besides the CSV file.
        name: what the run is called in them.
    """

    def __init__(self, out: Path, start: int, total: int, *, first: bool, loggers: Sequence[str], name: str) -> None:
        self._loggers: list[Logger] = make_loggers(loggers, out, name) if first else []
        self._metrics = MetricsFile(out / "metrics.csv", start) if first else None
        self.progress = Progress(start, total, shown=first)

    def write(self, step: int, row: Mapping[str, float]) -> None:
        """Keep the measurements of a step, if there are any."""
        if not row or self._metrics is None:
            return
        self._metrics.write({"step": step, **row})
        for logger in self._loggers:
            logger.log(row, step)

    def picture(self, step: int, path: Path) -> None:
        """Hand a picture to the loggers."""
        for logger in self._loggers:
            logger.picture(path, step)

    def close(self) -> None:
        """Finish the files, and leave the terminal as it was."""
        self.progress.close()
        for logger in self._loggers:
            logger.close()
