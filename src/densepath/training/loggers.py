"""Where measurements go besides the run's own CSV file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from densepath.core.errors import UserError

_STEP = "trainer/global_step"  # the axis of Weights & Biases: its own count may not go back when a run is resumed


class Logger(Protocol):
    """Takes what a run measures."""

    def log(self, row: Mapping[str, float], step: int) -> None:
        """Take numbers by name."""

    def picture(self, path: Path, step: int) -> None:
        """Take a PNG file that is named after what it shows and a step."""

    def close(self) -> None:
        """Write out what is left."""


class TensorBoard:
    """Event files in the folder ``tensorboard`` of a run."""

    def __init__(self, out: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(out / "tensorboard"))

    def log(self, row: Mapping[str, float], step: int) -> None:
        for name, value in row.items():
            self._writer.add_scalar(name, value, step)

    def picture(self, path: Path, step: int) -> None:
        with Image.open(path) as image:
            self._writer.add_image(_title(path), np.asarray(image.convert("RGB")), step, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases, in the project "densepath"; its own files lie in the run folder."""

    def __init__(self, out: Path, name: str) -> None:
        import wandb

        self._wandb: Any = wandb
        self._run = self._wandb.init(project="densepath", name=name, dir=str(out))

    def log(self, row: Mapping[str, float], step: int) -> None:
        self._run.log({**row, _STEP: step})

    def picture(self, path: Path, step: int) -> None:
        self._run.log({_title(path): self._wandb.Image(str(path)), _STEP: step})

    def close(self) -> None:
        self._run.finish()


def make_loggers(names: Sequence[str], out: Path, run: str) -> list[Logger]:
    """Make the loggers that were asked for; their files lie in the run folder.

    Args:
        names: "tensorboard", "wandb".
        out: the run folder.
        run: what the run is called.

    Raises:
        UserError: an unknown name, or its package is not installed.
    """
    made: list[Logger] = []
    for name in names:
        if name not in ("tensorboard", "wandb"):
            raise UserError(f"no logger is called {name!r}; use tensorboard or wandb (metrics.csv is always written)")
        try:
            made.append(TensorBoard(out) if name == "tensorboard" else WeightsAndBiases(out, run))
        except ImportError as error:
            raise UserError(f"the logger {name} needs a package; pip install densepath[{name}]") from error
    return made


def _title(picture: Path) -> str:
    return picture.stem.rpartition("_")[0]
