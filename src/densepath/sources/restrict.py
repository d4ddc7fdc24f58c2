"""Pre-training on a part of the data: the slides of a list, or a share of the slides or images."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from densepath.core.columns import LISTED_SLIDE_COLUMNS, plain_head
from densepath.core.csv_files import find_column, open_text, refuse_longer
from densepath.core.errors import UserError
from densepath.core.random import ordered_by_seed, permute
from densepath.core.table_lines import Lines
from densepath.sources.image_files import ImageFiles
from densepath.sources.packed import PackedTiles
from densepath.sources.pixel_source import PixelSource
from densepath.sources.tiles.slide_tiles import SlideTiles
from densepath.sources.tiles.tile_files import read_tile_folder
from densepath.sources.volumes.store import VolumeStore

_KEY = -1  # instead of an epoch: the choice is independent of all orders


def restrict(
    images: PixelSource, slides: str | Path | None = None, fraction: float = 1.0, seed: int = 0
) -> PixelSource:
    """A source with a part of its slides, or of its images where there are no slides.

    A smaller fraction with the same seed is a part of a larger one.

    Args:
        images: the source, as it was found.
        slides: a text or CSV file with names of slides; None for all.
        fraction: the share of the slides that are left, above 0 and up to 1; at least one is taken.
        seed: decides which.

    Raises:
        UserError: unknown slides, or no slides in the source.
    """
    if slides is not None:
        if not isinstance(images, SlideTiles) or images.folder is None:
            raise UserError("--slides needs tiles of slides, from densepath tile; leave it out, or use --exclude")
        asked = read_slide_list(slides)
        names = [tiling.name for tiling in read_tile_folder(images.folder, asked)]
        if not {tiling.name for tiling in images.tilings}.intersection(names):
            raise UserError(f"--exclude leaves out all slides of {slides}; narrow it, or add slides to the list")
        images = images.restricted_to(names)
    if fraction == 1:
        return images
    if isinstance(images, SlideTiles):
        names = ordered_by_seed((tiling.name for tiling in images.tilings), seed)
        return images.restricted_to(names[: max(1, round(fraction * len(names)))])
    if not isinstance(images, PackedTiles | ImageFiles | VolumeStore):
        raise UserError(
            "--fraction needs image files, a packed store, tiles of slides or a store of volumes; leave it out"
        )
    return take(images, share_of(len(images), fraction, seed))


def share_of(count: int, fraction: float, seed: int) -> Tensor:
    """The positions of a share of images, at least one, ascending."""
    most = max(1, round(fraction * count))
    return permute(torch.arange(most), count, seed, _KEY).sort().values


def take(images: PixelSource, positions: Tensor) -> PixelSource:
    """The source with only the images at some positions (K,), in this order, with the pixels of the whole source.

    Raises:
        UserError: it has no part that can be a source.
    """
    if isinstance(images, PackedTiles | VolumeStore | ImageFiles):
        return images.take(positions)
    raise UserError("only image files, packed stores and volumes can be divided by image; pack these first")


def read_slide_list(path: str | Path) -> list[str]:
    """The names of slides in a text file with a name in each line, or in a CSV or TSV file with a column of them.

    Lines that start with # are comments; in a text file # is followed by a space.

    Raises:
        UserError: it cannot be read, or has no names.
    """
    suffix = Path(path).suffix.lower()
    try:
        with open_text(path) as file:
            if suffix in (".csv", ".tsv"):
                lines = ("\n" if line.lstrip().startswith("#") else line for line in file)
                table = Lines(lines, delimiter="\t" if suffix == ".tsv" else "")
                names = _names(((table.line_num, row) for row in table), path)
            else:
                numbered = ((number, line) for number, line in enumerate(file, 1) if line.strip())
                names = _names(((n, [line]) for n, line in numbered if not line.lstrip().startswith("# ")), path)
    except (OSError, UnicodeError, csv.Error) as error:
        why, remedy = (error.strerror, "check the path") if isinstance(error, OSError) else (error, "correct it")
        raise UserError(f"the list of slides {path} cannot be read ({why}); {remedy}") from error
    if not names:
        raise UserError(f"the list of slides {path} has no names; give a name in each line, or a column slide")
    return names


def _names(rows: Iterator[tuple[int, list[str]]], path: str | Path) -> list[str]:
    """The names in numbered rows: in the column that the first row names, or else in the first one."""
    start, first = next(rows, (0, []))
    column = find_column([plain_head(field) for field in first], LISTED_SLIDE_COLUMNS, path)
    names = []
    for number, row in rows if column is not None else chain([(start, first)], rows):
        if column is not None:
            refuse_longer(row, len(first), path, number)
        names += row[column or 0 :][:1]
    return [name.strip() for name in names if name.strip()]
