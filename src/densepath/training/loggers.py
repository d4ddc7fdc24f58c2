"""Where measurements go besides the run's own CSV file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from PIL import Image

from densepath.core.errors import UserError


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
            if name == "tensorboard":
                made.append(TensorBoardLogger(out, name="tensorboard", version=""))
            else:
                made.append(WandbLogger(name=run, save_dir=out, project="densepath"))
        except ModuleNotFoundError as error:
            raise UserError(f"the logger {name} needs a package; pip install densepath[{name}]") from error
    return made


def log_picture(logger: Logger, picture: Path, step: int) -> None:
    """Hand a PNG file, named after what it shows and a step, to a logger of :func:`make_loggers`."""
    name = picture.stem.rpartition("_")[0]
    if isinstance(logger, TensorBoardLogger):
        with Image.open(picture) as image:
            logger.experiment.add_image(name, np.asarray(image.convert("RGB")), step, dataformats="HWC")
    elif isinstance(logger, WandbLogger):
        logger.log_image(name, [str(picture)], step)
