"""The slides that weights were pre-trained on: in the run's folder, and in the metadata of exported weights."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from operator import itemgetter
from pathlib import Path
from typing import Any

from densepath.core.csv_files import table_writer
from densepath.core.errors import UserError
from densepath.core.keywords import is_on_disk
from densepath.nets.weights.backbone_weights import read_weights, weights_file
from densepath.nets.weights.of_run import run_of
from densepath.nets.weights.published import weight_files

SLIDES = "slides.csv"  # in the folder of a run
_KEY = "slides"
_COLUMNS = ("slide", "path", "tiles")


def slides_of_weights(path: str | Path) -> tuple[str, ...] | None:
    """The names of the slides that weights were pre-trained on; None if they are not recorded.

    Args:
        path: exported weights, a checkpoint or a run folder; others have no record.

    Raises:
        UserError: the file cannot be read.
    """
    if not is_on_disk(path):
        return None
    files = weight_files(Path(path)) or [Path(path)]
    if len(files) > 1:  # densepath does not divide weights
        return None
    try:
        found: Any = json.loads(read_weights(files[0]).metadata.get(_KEY, "null"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} has a damaged list of slides in its metadata; export it again") from error
    if isinstance(found, list):
        return tuple(str(name) for name in found)
    run = run_of(weights_file(files[0]))
    return slides_of_run(run) if run else None


def slides_of_run(run: Path) -> tuple[str, ...] | None:
    """The names of the slides of a run, from its folder; None for runs on images.

    Raises:
        UserError: the list cannot be read.
    """
    path = run / SLIDES
    if not path.is_file():
        return None
    try:
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            return tuple(slide for slide, *_ in map(itemgetter(*_COLUMNS), csv.DictReader(file)))
    except (OSError, csv.Error, KeyError) as error:
        raise UserError(f"{path} is not the list of a run's slides; restore it") from error


def write_slides(run: Path, rows: Iterable[tuple[str, str, int]]) -> None:
    """Record the slides of a run: name, path and number of tiles of each."""
    with table_writer(run / SLIDES) as writer:
        writer.writerow(_COLUMNS)
        writer.writerows(rows)


def slide_notes(slides: Iterable[str] | None) -> dict[str, str]:
    """The metadata of exported weights that :func:`slides_of_weights` reads."""
    return {} if slides is None else {_KEY: json.dumps(list(slides))}
