"""The CSV file of a run's measurements."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from densepath.core.csv_files import LineFeeds
from densepath.core.errors import UserError
from densepath.core.files import atomic_write, writing

METRICS = "metrics.csv"  # in a run folder
COUNTS = ("probe_train_images", "probe_test_images", "probe_train_positions")  # written by version 0.1


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The rows of a metrics file, each with the columns in which it has a value.

    Raises:
        UserError: the file is damaged.
    """
    return [{name: float(value) for name, value in row.items() if value} for row in _read_rows(path)]


class MetricsFile:
    """Appends rows to a CSV file; new columns are added when they appear.

    Args:
        path: path of the file, which is created with its first row.
        resume_at: the step that a resumed run continues from: later rows will be measured again and are removed.

    Attributes:
        newest: the step of the newest row; 0 without any.

    Raises:
        UserError: the file exists and is not a metrics file.
    """

    def __init__(self, path: Path, resume_at: int = 0) -> None:
        self._path = path
        self._columns: list[str] = []
        self._unwritten: list[Mapping[str, float]] = []
        self._whole = True  # whether the last line of the file is complete
        self.newest = 0
        if path.exists():
            try:
                kept = [row for row in _read_rows(path) if int(row["step"]) <= resume_at]
            except (ValueError, LookupError) as error:
                raise UserError(f"{path} is damaged or holds no measurements; move it away") from error
            self._rewrite(kept)
            self.newest = max((int(row["step"]) for row in kept), default=0)

    def write(self, row: Mapping[str, float]) -> None:
        """Append one row, which must name its ``step``, a whole number larger than that of the row before.

        A row that cannot be written is kept, and written with the next one.

        Raises:
            UserError: the disk is full, the file is not writable, or it is damaged.
        """
        self._unwritten.append(row)
        self.flush()

    @property
    def unwritten(self) -> float | None:
        """The step of the first row that could not be written yet; None without any."""
        return self._unwritten[0]["step"] if self._unwritten else None

    def flush(self) -> None:
        """Write the rows that could not be written before. Errors as for :meth:`write`."""
        if not self._unwritten:
            return
        if self._whole and all(name in self._columns for row in self._unwritten for name in row):
            self._whole = False
            with writing(self._path), self._path.open("a", newline="") as file:
                csv.DictWriter(LineFeeds(file), self._columns).writerows(self._unwritten)
        else:
            first = self._unwritten[0]["step"]
            written = [row for row in _read_rows(self._path) if float(row.get("step") or 0) < first]
            self._rewrite([*written, *self._unwritten])
        self._whole = True
        self._unwritten.clear()

    def _rewrite(self, rows: Sequence[Mapping[str, str | float]]) -> None:
        columns = list(dict.fromkeys([name for row in rows for name in row] + self._columns))
        with atomic_write(self._path) as part, part.open("w", newline="") as file:
            writer = csv.DictWriter(LineFeeds(file), columns)
            writer.writeheader()
            writer.writerows(rows)
        self._columns = columns


def _read_rows(path: Path) -> list[dict[str, str]]:
    """The rows as text, whose values are numbers or empty.

    Raises:
        UserError: the file is damaged.
    """
    line, rows = 1, []
    try:
        table = csv.DictReader(io.StringIO(whole_lines(path)))
        for row in table:
            line = table.line_num
            if any("\0" in text for text in row.values() if isinstance(text, str)):
                raise ValueError("it has zero bytes, as after a power cut")
            for value in row.values():  # of a row that is too long the last one is a list
                float(value or 0)
            rows.append(_current(row))
    except (ValueError, TypeError, csv.Error) as error:
        raise UserError(f"{path} is damaged at line {line} ({error}); correct the file or move it away") from error
    return rows


def whole_lines(path: Path) -> str:
    """The text of a file, which may be missing, without a last line that is incomplete as its writer was killed."""
    if not path.exists():
        return ""
    text = path.read_text()
    return text[: text.rfind("\n") + 1]


def _current(row: dict[str, str]) -> dict[str, str]:
    """A row with the probe's scores in percent: version 0.1 wrote shares of 1, together with its numbers of images."""
    shares = any(row.get(name) for name in COUNTS)
    return {
        name: repr(100 * float(text)) if shares and text and name.startswith("probe_") else text
        for name, text in row.items()
        if name not in COUNTS
    }
