"""Loggers of measurements besides the run's own CSV file: TensorBoard, Weights & Biases."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from densepath.core.errors import UserError

_RUN_ID = "wandb_id.txt"  # in a run folder
_STEP = "trainer/global_step"  # the axis in Weights & Biases: its own step may not decrease when a run is resumed


class Logger(Protocol):
    """Receives the measurements of a run."""

    def log(self, row: Mapping[str, float], step: int) -> None:
        """Log numbers by name."""

    def picture(self, path: Path, step: int) -> None:
        """Log a PNG file, whose name is NAME_STEP.png."""

    def close(self) -> None:
        """Flush and finish."""


class TensorBoard:
    """Event files in the folder ``tensorboard`` of a run, without the steps that a resumed run repeats."""

    def __init__(self, out: Path, start: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(out / "tensorboard"), purge_step=start + 1)

    def log(self, row: Mapping[str, float], step: int) -> None:
        for name, value in row.items():
            self._writer.add_scalar(name, value, step)

    def picture(self, path: Path, step: int) -> None:
        with Image.open(path) as image:
            self._writer.add_image(_title(path), np.asarray(image.convert("RGB")), step, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases, in the project "densepath"; its files are in the run folder. Resumed, it continues."""

    def __init__(self, out: Path, name: str, start: int) -> None:
        import wandb

        self._wandb: Any = wandb
        known = out / _RUN_ID
        if start == 0 or not known.is_file():
            known.write_text(secrets.token_hex(4))
        own = {"id": known.read_text(), "resume": "allow"}
        self._run = self._wandb.init(project="densepath", name=name, dir=str(out), **own)

    def log(self, row: Mapping[str, float], step: int) -> None:
        self._run.log({**row, _STEP: step})

    def picture(self, path: Path, step: int) -> None:
        self._run.log({_title(path): self._wandb.Image(str(path)), _STEP: step})

    def close(self) -> None:
        self._run.finish()


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
    made: list[Logger] = []
    for name in names:
        if name not in ("tensorboard", "wandb"):
            raise UserError(f"no logger is called {name!r}; use tensorboard or wandb (metrics.csv is always written)")
        try:
            made.append(TensorBoard(out, start) if name == "tensorboard" else WeightsAndBiases(out, run, start))
        except ImportError as error:
            raise UserError(f"the logger {name} needs a package; pip install 'densepath[{name}]'") from error
    return made


def _title(picture: Path) -> str:
    return picture.stem.rpartition("_")[0]
