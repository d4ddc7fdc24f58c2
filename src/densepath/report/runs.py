"""The runs on a page: what their folders hold, read without a network or their data."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import yaml

from densepath.analysis.curves import TRAINING, metrics_of
from densepath.core.errors import UserError, one_line
from densepath.core.locks import refuse_held
from densepath.core.records import CONFIG, TRAIN_LOG
from densepath.core.scores import in_percent
from densepath.report.blocks import Section
from densepath.report.measurements import Row, read_measurements
from densepath.report.paths import inside, own_file, recorded_data
from densepath.report.values import decimals
from densepath.runs.folder import SESSIONS, read_config
from densepath.runs.metrics import METRICS
from densepath.transfer.mil.models import ALL, models_named

SCORES = ("metrics.json", "scores.json")
_NO_SCORES = {"seconds"}
_OF_FEATURES = ("weights", "backbone", "stage", "pool", "size")  # options of the network that made them
_FINAL = ("backbone", "detector", "classifier", "segmenter")  # files in exported, written at the end of a run
RECORD = "table.json"  # of densepath.benchmark.tables.to_record
_DEPTH = 3  # levels of folders below the one that is given
_MOST_OF_LOG = 2**18  # bytes
MOST = 2000  # runs
ROWS = 20_000  # measurements of a run; more are averaged


@dataclass(frozen=True)
class Score:
    """A score, and its 95% interval if it has one.

    Args:
        value: in percent, or as its name says.
        low, high: the interval.
    """

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def interval(self) -> str:
        """The interval as a text; empty if it is unknown."""
        low, high = (math.nan if edge is None else edge for edge in (self.low, self.high))
        return f"{decimals(low)} to {decimals(high)}" if math.isfinite(low + high) else ""

    def __str__(self) -> str:
        return f"{decimals(self.value)} ({self.interval})" if self.interval else decimals(self.value)


@dataclass(frozen=True, eq=False)
class Run:
    """A run, or another result.

    Args:
        path: its folder, or its file.
        config: its options; empty without any.
        rows: its measurements.
        trainings: those of its folds and seeds, by folder; empty if it has measurements of its own.
        scores: its final scores.
        notes: what else the file of its scores says.
        sessions: where and how it was computed.
        state: "in progress", "complete", or "stopped".
    """

    path: Path
    config: Mapping[str, Any] = field(default_factory=dict)
    rows: Sequence[Row] = ()
    trainings: Mapping[str, Sequence[Row]] = field(default_factory=dict)
    scores: Mapping[str, Score] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)
    sessions: Sequence[Mapping[str, Any]] = ()
    state: str = "complete"

    def has(self, *names: str) -> bool:
        """Whether it has all of these options."""
        return all(name in self.config for name in names)

    @property
    def data(self) -> Path:
        """The images that it used; a relative path starts where the run was started, if that is recorded."""
        return recorded_data(self.config, self.sessions)

    @property
    def curves(self) -> Mapping[str, Sequence[Row]]:
        """The measurements of each of its trainings that has some."""
        return {self.path.resolve().name: self.rows} if self.rows else self.trainings

    @property
    def last(self) -> Row:
        """The newest value of each measurement."""
        return {name: value for row in self.rows for name, value in row.items()}


@dataclass(frozen=True)
class Kind:
    """A kind of runs.

    Args:
        name: what it is called.
        fits: whether a run is of this kind.
        sections: what the page shows of it, given the largest number of pictures.
    """

    name: str
    fits: Callable[[Run], bool]
    sections: Callable[[Run, int], list[Section]]


def find_results(path: Path) -> list[Path]:
    """The results in a folder: the folder itself, or the runs below it. A file is itself.

    Raises:
        UserError: there is nothing.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist; give a run folder")
    found = list(_below(path, _DEPTH)) if path.is_dir() else [path]
    if not found:
        raise UserError(f"{path} holds no run; give the folder of a run, or a folder of such folders")
    return found


def _below(folder: Path, depth: int) -> Iterator[Path]:
    if (folder / "run.json").is_file() and (folder / "run" / CONFIG).is_file():  # of a benchmark
        yield folder / "run"
    elif (folder / CONFIG).is_file() or is_table(folder):
        yield folder
    elif depth:
        try:
            inner = sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
        except OSError:
            return
        for entry in inner:
            yield from _below(entry, depth - 1)


def is_table(folder: Path) -> bool:
    """Whether a folder has a benchmark's table, which may be damaged; files of other programs have the same name."""
    try:
        found = json.loads((folder / RECORD).read_text())
    except (OSError, RecursionError):
        return False
    except ValueError:
        return True
    return isinstance(found, dict) and "parts" in found


def read_run(path: Path, most: int = ROWS) -> Run:
    """Read what a result has in common with others.

    Args:
        path: its folder or file.
        most: about as many measurements; more are averaged.

    Raises:
        UserError: it is damaged, or has a link that leads out of it.
    """
    if path.is_file():
        record, scores = read_scores(path)
        return Run(path, _options(record), scores=scores)
    for name in (CONFIG, METRICS, *SCORES, SESSIONS, TRAIN_LOG):
        own_file(path, name)
    try:
        config = read_config(path) or {}
        rows = read_measurements(path / METRICS, most)
        notes, scores = next((read_scores(path / name) for name in SCORES if (path / name).is_file()), ({}, {}))
        trainings = {} if rows else _trainings(path, config, most)
        return Run(path, config, rows, trainings, scores, notes, read_sessions(path), _state(path, config))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({one_line(str(error))})") from None


def read_model(run: Run, folder: Path) -> Run:
    """A model of a run that has several, from the folder of the model, which has scores."""
    config = {**run.config, "model": folder.name}
    trainings = _trainings(folder, config, ROWS)
    notes, scores = read_scores(folder / SCORES[1])
    return replace(run, path=folder, config=config, trainings=trainings, scores=scores, notes=notes, state="complete")


def _trainings(path: Path, config: Mapping[str, Any], most: int) -> dict[str, list[Row]]:
    """The measurements of the folds and seeds of a classifier, a segmenter or a model of slides."""
    if not {"labels", "folds"} & config.keys():
        return {}
    with suppress(UserError):  # of a run with several models
        files = [file for file in metrics_of(path) if inside(file, path)]
        share = -(-most // max(1, len(files)))
        found = {file.parent.relative_to(path).as_posix(): read_measurements(file, share) for file in files}
        return {name: rows for name, rows in found.items() if rows}
    return {}


def read_scores(path: Path) -> tuple[Mapping[str, Any], dict[str, Score]]:
    """What a file of scores holds, and the scores: of a detector, a classifier, a model of slides or a probe.

    Raises:
        UserError: it is damaged.
    """
    try:
        record = json.loads(path.read_text())
        if not isinstance(record, dict):
            raise ValueError("no scores")
        scores = record.get("scores", record)
        others = {*_NO_SCORES, *_before_scale(record)}
        found = {}
        for name, value in scores.items():
            if name in others:
                continue
            if isinstance(value, Mapping) and isinstance(value.get("value"), int | float):
                edges = {edge: value.get(edge) for edge in ("value", "low", "high")}
            elif isinstance(value, float):
                low, high = scores.get(f"{name}_interval") or (None, None)
                edges = {"value": value, "low": low, "high": high}
            else:
                continue
            known = {edge: number for edge, number in edges.items() if number is not None}
            found[str(name)] = Score(**in_percent(known, record))
        return record, found
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({one_line(str(error))}); give a run or scores of probe") from None


def _before_scale(record: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a probe, which come before its scores; empty for scores of other verbs."""
    found = dict(takewhile(lambda pair: pair[0] != "scale", record.items())) if "scale" in record else {}
    return found if "seed" in found else {}


def _options(record: Mapping[str, Any]) -> dict[str, Any]:
    """The options in the scores of a probe; of features, those of the network that made them, too, as they were."""
    encoding = record.get("encoding")
    made = encoding if isinstance(encoding, Mapping) else {}
    return _before_scale(record) | {name: made[name] for name in _OF_FEATURES if name in made}


def read_sessions(folder: Path) -> list[Mapping[str, Any]]:
    """When and where a run was computed, from its folder; empty if that is unknown.

    Where only the trainings of a run have a record, as in former folders, that of the first is read.
    """
    files = (part / SESSIONS for part in _parts(folder))
    try:
        found = yaml.safe_load(next(file for file in files if file.is_file() and inside(file, folder)).read_text())
    except (StopIteration, OSError, ValueError, yaml.YAMLError):
        return []
    return [entry for entry in found if isinstance(entry, Mapping)] if isinstance(found, list) else []


def _parts(folder: Path) -> Iterator[Path]:
    """A run's folder, then those of its models, seeds and folds, which may lie in one another."""
    level, models = [folder], models_named(ALL)
    for _ in range(_DEPTH + 1):
        yield from level
        inner = (entry for part in level for entry in part.iterdir())
        named = sorted(entry for entry in inner if TRAINING.fullmatch(entry.name) or entry.name in models)
        level = [entry for entry in named if entry.is_dir()]


def _state(path: Path, config: Mapping[str, Any]) -> str:
    try:
        refuse_held(path)
    except UserError:
        return "in progress"
    if config.get("model") == ALL and "folds" in config:
        scored = [(path / name / SCORES[1]).is_file() for name in models_named(ALL)]
        return "complete" if all(scored) else "stopped"
    final = [*SCORES, *(f"exported/{name}.safetensors" for name in _FINAL)]
    return "complete" if any((path / name).is_file() for name in final) else "stopped"


def next_commands(run: Run) -> list[str]:
    """The commands that the run printed at its end."""
    lines = log_lines(run)
    marks = ("densepath: next: ", "densepath: or: ")
    last = max((number for number, line in enumerate(lines) if line.startswith(marks[0])), default=len(lines))
    return [line.split(": ", 2)[2] for line in lines[last:] if line.startswith(marks)]


def log_lines(run: Run) -> list[str]:
    """The last lines of its log, from at most 256 KiB."""
    try:
        with (run.path / TRAIN_LOG).open("rb") as file:
            file.seek(max(0, (run.path / TRAIN_LOG).stat().st_size - _MOST_OF_LOG))
            return file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return []
