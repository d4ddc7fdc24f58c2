"""Measurements of runs, read fast enough for a hundred runs at once, and averaged where they are many."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from densepath.runs.metrics import COUNTS, read_metrics, whole_lines

Row = Mapping[str, float]

_LARGEST = 2**28  # bytes of a file
_NONE = float(np.finfo(np.float64).max)  # in the place of a value that is missing: NaN may have been measured


def read_measurements(path: Path, most: int) -> list[Row]:
    """About ``most`` measurements of a run: means of as many in a row, and the newest of each column as it is.

    A mean stands at the mean step of the rows that measured its column: those of a rare column are rows of their own.

    Raises:
        ValueError, UserError: the file is damaged, or too large.
        OSError: it cannot be read.
    """
    if path.exists() and path.stat().st_size > _LARGEST:
        raise ValueError(f"{path.name} is larger than {_LARGEST // 2**20} MiB")
    text = whole_lines(path)
    head, _, lines = text.partition("\n")
    columns = head.rstrip("\r").split(",")
    if not lines.strip():
        return []
    if set(COUNTS) & set(columns) or '"' in text:
        return averaged(*_table(read_metrics(path)), most)
    for _ in range(2):  # "a,,,b" has two missing values, of which one replacement finds the first
        lines = lines.replace(",,", f",{_NONE!r},")
    lines = f"\n{lines}".replace("\r", "").replace("\n,", f"\n{_NONE!r},").replace(",\n", f",{_NONE!r}\n")
    try:
        values = np.loadtxt(io.StringIO(lines), np.float64, delimiter=",", ndmin=2, comments=None)
    except ValueError as error:
        raise ValueError(f"{path.name} is damaged: {error}") from None
    if values.shape[1] != len(columns):
        raise ValueError(f"{path.name} has {values.shape[1]} values in its rows, and {len(columns)} columns")
    return averaged(columns, values, most)


def _table(rows: Sequence[Row]) -> tuple[list[str], npt.NDArray[np.float64]]:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return columns, np.array([[row.get(name, _NONE) for name in columns] for row in rows]).reshape(len(rows), -1)


def averaged(columns: Sequence[str], values: npt.NDArray[np.float64], most: int) -> list[Row]:
    """The rows of values (N, C), as :func:`read_measurements` describes them."""
    if len(values) <= most:
        return _rows(columns, values)
    known = values != _NONE
    steps = values[:, list(columns).index("step")] if "step" in columns else np.arange(len(values), dtype=np.float64)
    starts = np.arange(0, len(values), -(-len(values) // most))
    counts = np.add.reduceat(known, starts, dtype=np.int64)
    means, places = (
        np.add.reduceat(np.where(known, each, 0.0), starts) / np.maximum(counts, 1) for each in (values, steps[:, None])
    )
    found: dict[float, dict[str, float]] = {}
    for number, name in enumerate(columns):
        filled, own = counts[:, number] > 0, np.flatnonzero(known[:, number])
        pairs = list(zip(places[filled, number].tolist(), means[filled, number].tolist(), strict=True))
        pairs += [(float(steps[own[-1]]), float(values[own[-1], number]))] if len(own) else []
        for step, value in pairs:
            found.setdefault(step, {"step": step})[name] = value
    return [found[step] for step in sorted(found)]


def _rows(columns: Sequence[str], values: npt.NDArray[np.float64]) -> list[Row]:
    return [
        {name: value for name, value in zip(columns, row, strict=True) if value != _NONE} for row in values.tolist()
    ]
