"""Loggers of measurements besides the run's own CSV file: TensorBoard, Weights & Biases."""

from __future__ import annotations

import platform
import secrets
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from densepath.core.errors import UserError
from densepath.core.files import writing

_RUN_ID = "wandb_id.txt"  # in a run folder
_STEP = "trainer/global_step"  # the axis in Weights & Biases: its own step may not decrease when a run is resumed


class Logger(Protocol):
    """Receives the measurements of a run."""

    name: str

    def log(self, row: Mapping[str, float], step: int) -> None:
        """Log numbers by name."""

    def picture(self, path: Path, step: int) -> None:
        """Log a PNG file, whose name is NAME_STEP.png."""

    def close(self) -> None:
        """Flush and finish."""


class TensorBoard:
    """An event file in the folder ``tensorboard`` of a run, without the steps that a resumed run repeats.

    Events are appended in the thread of the caller, who gets the error of a full disk. Torch's ``SummaryWriter`` writes
    in a thread of its own, which prints a traceback.
    """

    name = "tensorboard"

    def __init__(self, out: Path, start: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter
        from torch.utils.tensorboard import summary

        self._event, self._writer, self._summary = Event, RecordWriter, summary
        self._path = out / "tensorboard" / f"events.out.tfevents.{time.time_ns()}.{platform.node()}"
        with writing(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
        purge = {"step": start + 1, "session_log": SessionLog(status=SessionLog.START)}
        self._append({"file_version": "brain.Event:2"}, purge)

    def log(self, row: Mapping[str, float], step: int) -> None:
        self._append(*({"step": step, "summary": self._summary.scalar(name, value)} for name, value in row.items()))

    def picture(self, path: Path, step: int) -> None:
        with Image.open(path) as image:
            shown = self._summary.image(_title(path), np.asarray(image.convert("RGB")), dataformats="HWC")
        self._append({"step": step, "summary": shown})

    def close(self) -> None:
        """The file is closed after each call."""

    def _append(self, *events: Mapping[str, Any]) -> None:
        with writing(self._path), self._path.open("ab") as file:
            for event in events:
                content = self._event(wall_time=time.time(), **event).SerializeToString()
                self._writer(file).write(content)


class WeightsAndBiases:
    """A run of Weights & Biases, in the project "densepath"; its files are in the run folder. Resumed, it continues."""

    name = "wandb"

    def __init__(self, out: Path, name: str, start: int) -> None:
        import wandb

        self._wandb: Any = wandb
        known = out / _RUN_ID
        if start == 0 or not known.is_file():
            with writing(known):
                known.write_text(secrets.token_hex(4))
        own = {"id": known.read_text(), "resume": "allow"}
        self._run = self._wandb.init(project="densepath", name=name, dir=str(out), **own)

    def log(self, row: Mapping[str, float], step: int) -> None:
        self._run.log({**row, _STEP: step})

    def picture(self, path: Path, step: int) -> None:
        self._run.log({_title(path): self._wandb.Image(str(path)), _STEP: step})

    def close(self) -> None:
        self._run.finish()


def check_loggers(names: Sequence[str]) -> None:
    """Check loggers without making them.

    Raises:
        UserError: an unknown name, or its package is not installed.
    """
    for name in names:
        if name not in ("tensorboard", "wandb"):
            raise UserError(f"no logger is called {name!r}; use tensorboard or wandb (metrics.csv is always written)")
        found = sys.modules.get(name) or find_spec(name)
        if found is None or getattr(found, "loader", found) is None:  # a folder of that name, such as wandb's of runs
            raise _missing(name)


def make_loggers(names: Sequence[str], out: Path, run: str, start: int = 0) -> list[Logger]:
    """Make loggers; their files are in the run folder.

    Args:
        names: "tensorboard", "wandb".
        out: the run folder.
        run: name of the run.
        start: number of optimizer steps done before.

    Raises:
        UserError: an unknown name, or its package is not installed.
    """
    check_loggers(names)
    made: list[Logger] = []
    for name in names:
        try:
            made.append(TensorBoard(out, start) if name == "tensorboard" else WeightsAndBiases(out, run, start))
        except ImportError as error:
            raise _missing(name) from error
    return made


def _missing(name: str) -> UserError:
    return UserError(f"the logger {name} needs a package; pip install 'densepath[{name}]'")


def _title(picture: Path) -> str:
    return picture.stem.rpartition("_")[0]
