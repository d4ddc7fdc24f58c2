"""Lists of NCT-CRC-HE-100K, tiles of colorectal tissue, for pre-training."""

from __future__ import annotations

import csv
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from densepath.core.csv_files import LineFeeds
from densepath.core.errors import UserError, counted, first_few, refuse
from densepath.core.files import atomic_write, require_new_folder
from densepath.core.random import check_seed, shuffled
from densepath.core.single_values import take_single_values
from densepath.core.streams import say, write_line
from densepath.core.system import usable_cores, with_progress
from densepath.core.threads import in_threads
from densepath.datasets.exclusion import Exclusion
from densepath.datasets.published import NCT, NCT_CLASSES
from densepath.sources.corrupt import CorruptImage
from densepath.sources.decode import Header, read_header
from densepath.sources.listing import SUFFIXES, walk

_SIDE = 224  # pixels of a tile
# The training tiles of each class in the list that the authors of ConCL published, of 80,000.
_CONCL = dict(zip(NCT_CLASSES, (8290, 8398, 9219, 9209, 7105, 10900, 7007, 8385, 11487), strict=True))


@take_single_values
def convert_nct(
    source: str | Path,
    dest: str | Path,
    share: float = 0.8,
    seed: int = 0,
    exclude: Sequence[str] = (),
    orientation: Literal["stored"] | None = None,
) -> Path:
    """Write the random 80% of NCT-CRC-HE-100K that the ConCL paper pre-trains on, as a list of files.

    ``train.csv`` has the chosen files, ``rest.csv`` the others, each with its class: both are lists for ``--data``, and
    tables for ``--labels``. The choice is random over all tiles, as in the paper, whose own list is another one; it
    depends on the seed and the names only. Nothing is copied. As published
    (https://doi.org/10.5281/zenodo.1214456, CC BY 4.0): 100,000 TIFF tiles of 224 px at 0.5 µm/px in nine class
    folders; what differs is reported. The authors of ConCL used the variant without stain normalization (NONORM).

    Args:
        source: the folder that holds ADI, BACK, DEB, LYM, MUC, MUS, NORM, STR, TUM, or its parent.
        dest: a new folder: train.csv, rest.csv, with absolute paths.
        share: share of the tiles to choose, from 0 to 1.
        seed: seed of the choice.
        exclude: patterns of image files to leave out: ``*`` and ``?`` in a path below the folder, a folder or a name.
        orientation: "stored" accepts tiles with an orientation tag, which are read as stored. Without it they are
            refused.

    Returns:
        ``dest``.

    Raises:
        UserError: a class folder is missing, a tile cannot be read, or ``dest`` is not empty.

    Source: Kather et al., "Predicting survival from colorectal cancer histology slides using deep learning", 2019; the
    choice: ConCL (ECCV 2022), section 4.
    """
    dest, source = require_new_folder(dest, "the lists"), Path(source)
    check_seed(seed)
    if not 0 < share < 1:
        raise UserError(f"share is {share}; give a number between 0 and 1")
    root = _find(source)
    files = [Path(path) for name in NCT_CLASSES for path in walk(root / name, SUFFIXES)]
    empty = [name for name in NCT_CLASSES if not any(path.is_relative_to(root / name) for path in files)]
    refuse(empty, f"classes of {root} without an image", "add their tiles")
    excluded = Exclusion(exclude)
    files = [path for path in files if not excluded(os.path.relpath(path, root))]
    excluded.report(root)
    _check(files, orientation)
    names = sorted(files, key=lambda path: path.relative_to(root).as_posix())
    chosen = {names[place] for place in shuffled(len(names), seed, epoch=0)[: round(share * len(names))].tolist()}
    lists = {"train": [p for p in names if p in chosen], "rest": [p for p in names if p not in chosen]}
    with atomic_write(dest) as folder:
        folder.mkdir()
        for name, paths in lists.items():
            with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
                rows = [(os.path.abspath(path), path.relative_to(root).parts[0]) for path in paths]
                csv.writer(LineFeeds(file)).writerows([("file", "label"), *rows])
    for name, paths in lists.items():
        classes = Counter(path.relative_to(root).parts[0] for path in paths)
        write_line(
            f"{name}: {counted(len(paths), 'image')}, {', '.join(f'{classes[c]} {c}' for c in NCT_CLASSES)}", sys.stdout
        )
    NCT.report({"tissue": len(files)})
    if (share, len(files)) == (0.8, NCT.images["tissue"]):
        say(f"densepath: the list of ConCL has {', '.join(f'{count} {name}' for name, count in _CONCL.items())}")
    return dest


def _find(source: Path) -> Path:
    """The folder with the folders of the classes: the source, or the only one in it that has them."""
    if not source.is_dir():
        raise UserError(f"{source} is not a folder; give the one that holds NCT-CRC-HE-100K")
    places = [source, *sorted(path for path in source.iterdir() if path.is_dir())]
    found = [place for place in places if all((place / name).is_dir() for name in NCT_CLASSES)]
    if not found:
        raise UserError(f"{source} has no folders {', '.join(NCT_CLASSES)}, as NCT-CRC-HE-100K is published")
    if len(found) > 1 and found[0] != source:
        raise UserError(f"{source} has several variants of NCT-CRC-HE-100K; give one: {', '.join(map(str, found))}")
    return found[0]


def _check(files: Sequence[Path], orientation: str | None) -> None:
    """Read all headers, and report tiles of another size."""
    other, turned = [], []
    headers = in_threads(_header, files, usable_cores(), "headers of tiles")
    for path, header in zip(files, with_progress(headers, len(files), "reading headers"), strict=True):
        if header.orientation != 1:
            turned.append(f"{path.name} (orientation {header.orientation})")
        if (header.height, header.width) != (_SIDE, _SIDE):
            other.append(f"{path.name} ({header.width} x {header.height} px)")
    if orientation is None:
        refuse(turned, "tiles with an orientation tag", "save them without it, or give --orientation stored")
    if other:
        say(f"densepath: {len(other)} of {len(files)} tiles are not {_SIDE} x {_SIDE} px: {first_few(other)}")


def _header(path: Path) -> Header:
    try:
        return read_header(path)
    except CorruptImage as error:
        raise UserError(f"{error}; replace the file, or leave it out with --exclude") from error
