"""The labelled data that rows are evaluated on: outlined objects, images with classes, slides with targets."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from densepath.annotations.classes import FOLDERS
from densepath.annotations.coco import open_split
from densepath.annotations.coco_checks import Orientation
from densepath.annotations.patients import MANIFEST
from densepath.benchmark.identity import (
    SHOWN_DIGITS,
    ImageSet,
    content,
    decoded,
    digest_of_given,
    image_set,
    listed_patients,
    volume_set,
)
from densepath.core.columns import SPLIT_OF
from densepath.core.digests import digest_of
from densepath.core.errors import UserError
from densepath.core.output_names import names_below
from densepath.sources.image_files import ImageFiles
from densepath.sources.listing import list_images
from densepath.sources.names import AllNames
from densepath.sources.open import find_source
from densepath.sources.restrict import take
from densepath.sources.tiles.slide_tiles import read_tiles
from densepath.sources.tiles.tile_files import is_tile_folder
from densepath.sources.volumes.store import VolumeStore
from densepath.transfer.classify.cohort import Pool, read_pool
from densepath.transfer.classify.config import ClassifyConfig
from densepath.transfer.classify.splits import make_study
from densepath.transfer.mil.config import MilConfig
from densepath.transfer.mil.slide_table import read_slide_table
from densepath.transfer.probe.folds import given_split
from densepath.transfer.probe.labelled import Listed, classes_and_splits
from densepath.transfer.probe.tasks import official_test

LABELS = "labels.csv"


@dataclass(frozen=True)
class LabelledSet:
    """A data set with labels.

    Args:
        name: its name in the table.
        train, test: its images, or of slides their names. Without an official test all are in both.
        digest: digest of images and labels.
        orientation: the pixels that the outlines describe, of images with an orientation tag; None if there are none.
        root: what ``--data`` is; by default the folder that holds the training images.
        inputs: further options of its runs: name -> path.
        folds: whether there is no official test, so that all are tested in folds.
        tiles: number of the tiles of its slides; 0 if it has none.
        what: what it holds.
    """

    name: str
    train: ImageSet
    test: ImageSet
    digest: str
    orientation: Orientation | None = None
    root: str = ""
    inputs: Mapping[str, str] = field(default_factory=dict)
    folds: bool = False
    tiles: int = 0
    what: str = "images"

    @property
    def folder(self) -> str:
        """What ``--data`` is."""
        return self.root or os.path.dirname(self.train.source)

    def __str__(self) -> str:
        counts = f"{len(self.train.names)} training and {len(self.test.names)} test {self.what}"
        counts = f"{len(self.test.names)} {self.what}, tested in folds" if self.folds else counts
        return f"{counts}, digest {self.digest[:SHOWN_DIGITS]}"


# (name, folder, folder of digests, orientation, options of the task) -> the set
Reader = Callable[[str, str | Path, Path, Orientation | None, Mapping[str, Any]], LabelledSet]


def read_outlined(
    name: str,
    folder: str | Path,
    cache: Path,
    orientation: Orientation | None = None,
    options: Mapping[str, Any] | None = None,
) -> LabelledSet:
    """Read outlined objects as ``densepath data`` writes them.

    Raises:
        UserError: it is not such a data set, or a file cannot be read.
    """
    found = {}
    for split in ("train", "test"):
        images = open_split(folder, split, outlines=False, orientation=orientation)
        paths = [str(images.folder / image["file_name"]) for image in images.coco_ground_truth()["images"]]
        parts = [content([images.annotations], cache), *listed_patients(images.folder, paths)]
        found[split] = image_set(str(images.folder), paths, cache), parts
    digest = digest_of(part for images, parts in found.values() for part in (images.digest, *parts))
    return LabelledSet(name, found["train"][0], found["test"][0], digest, orientation)


def read_classes(
    name: str, folder: str | Path, cache: Path, orientation: Orientation | None, options: Mapping[str, Any]
) -> LabelledSet:
    """Read images with classes: a folder with ``labels.csv``, or of class folders; or a list of files with labels.

    Raises:
        UserError: labels are missing or invalid, or the official split leaks.
    """
    path = Path(folder)
    table = path if path.is_file() else path / LABELS
    labels = str(table.absolute()) if table.is_file() else FOLDERS
    listed = table.is_file() and (path.is_file() or not _holds_images(path))
    data = str(table.absolute() if listed else path.absolute())
    known = {key: value for key, value in options.items() if key in CLASS_OPTIONS}
    config = ClassifyConfig(data=data, labels=labels, out="", **known)
    pool = read_pool(config, find_source(data, exclude=config.exclude), data, labels)
    study = make_study(pool, None)
    fit, official = np.sort(np.concatenate((study.fit, study.held))), len(study.tested) > 0
    train, test = (images_of(pool, places, data, cache) for places in (fit, study.tested if official else fit))
    written = content([table], cache) if table.is_file() else ""
    patients = listed_patients(data, list(AllNames(pool.images)))
    digest = digest_of([train.digest, test.digest, written, *pool.names, *pool.splits, *patients])
    return LabelledSet(name, train, test, digest, None, data, {"labels": labels}, not official)


CLASS_OPTIONS = ("target", "targets", "separator", "uncertain", "unmatched", "exclude", "patient", "patient_regex")


def _holds_images(folder: Path) -> bool:
    try:
        return len(find_source(folder)) > 0
    except UserError:
        return False


def read_plain(
    name: str, folder: str | Path, cache: Path, orientation: Orientation | None, options: Mapping[str, Any]
) -> LabelledSet:
    """Read images whose labels a task makes itself: a folder, or a list with patients and a split, perhaps in a folder.

    Raises:
        UserError: there are none, or a file cannot be read.
    """
    data = Path(folder) / LABELS if (Path(folder) / LABELS).is_file() else Path(folder)
    source = str(data.absolute())
    paths = list(list_images(source))
    images = image_set(source, paths, cache)
    tested = official_test(paths, names_below(paths, source), source)
    sides = [images, images]
    if tested is not None:
        parts = ([path for path, test in zip(paths, tested, strict=True) if test == side] for side in (False, True))
        sides = [image_set(source, part, cache) for part in parts]
    digest = digest_of([images.digest, digest_of_given(source, cache), *listed_patients(source, paths)])
    return LabelledSet(name, sides[0], sides[1], digest, None, source, {}, tested is None)


def read_labelled(
    name: str, folder: str | Path, cache: Path, orientation: Orientation | None, options: Mapping[str, Any]
) -> LabelledSet:
    """Read images with classes for a probe: a folder with ``labels.csv`` or ``manifest.csv``, or of class folders.

    Raises:
        UserError: there are no images, one has no class, there are fewer than two classes, or splits have other names
            than train, val and test.
    """
    root = Path(folder).absolute()
    table = next((str(root / file) for file in (LABELS, MANIFEST) if (root / file).is_file()), None)
    paths = list(list_images(root))
    names = [name.replace(os.sep, "/") for name in names_below(paths, root)]
    listed = Listed(names if table is None else paths)
    _, splits, whose = classes_and_splits(names, listed, table, options.get("target"))
    tested = given_split(splits, whose) if splits else None
    sides = [paths, paths]
    if tested is not None:
        sides = [[path for path, test in zip(paths, tested, strict=True) if test == side] for side in (False, True)]
    train, test = (image_set(str(root), side, cache) for side in sides)
    written = "" if table is None else content([table], cache)
    digest = digest_of([train.digest, test.digest, written, *listed_patients(root, paths)])
    return LabelledSet(name, train, test, digest, None, str(root), {"labels": table or FOLDERS}, tested is None)


def read_unlabelled(
    name: str, folder: str | Path, cache: Path, orientation: Orientation | None, options: Mapping[str, Any]
) -> LabelledSet:
    """Read images whose classes do not matter: as :func:`read_labelled`, or else all images of a folder.

    Raises:
        UserError: there are none, or a file cannot be read.
    """
    try:
        return read_labelled(name, folder, cache, orientation, options)
    except UserError:  # no classes
        images = image_set(root := str(Path(folder).absolute()), list(list_images(root)), cache)
        return LabelledSet(name, images, images, images.digest, None, root, {}, True)


def images_of(pool: Pool, places: Any, data: str, cache: Path) -> ImageSet:
    """Some images of a pool."""
    chosen = pool.take(places)
    if isinstance(chosen.images, ImageFiles):
        return image_set(data, list(AllNames(chosen.images)), cache)
    digest = digest_of([digest_of_given(data, cache), *chosen.names])
    if isinstance(chosen.images, VolumeStore):
        return replace(volume_set(data, chosen.images, cache), digest=digest)
    if chosen.images.spec.ndim != 2:  # volumes are not compared by their pixels
        return ImageSet(data, digest, tuple(chosen.names), ("",) * len(chosen))
    return decoded(data, take(pool.images, torch.from_numpy(places)), [data], digest, cache)


def read_slides(
    name: str, folder: str | Path, cache: Path, orientation: Orientation | None, options: Mapping[str, Any]
) -> LabelledSet:
    """Read slides with targets: a folder of ``densepath tile``; ``labels.csv`` is in it, or beside the slides.

    Raises:
        UserError: it is not such a folder, or there is no such table.
    """
    if not is_tile_folder(folder):
        raise UserError(f"{folder} is not a folder that densepath tile wrote; tile the slides of {name}, and name it")
    tiles = read_tiles(folder)
    beside = os.path.commonpath([os.path.dirname(tiling.path) for tiling in tiles.tilings])
    tables = [path for path in (Path(folder) / LABELS, Path(beside) / LABELS) if path.is_file()]
    if not tables:
        raise UserError(f"{name} has no {LABELS} in {folder} or {beside}; put the table of slides there")
    known = {key: value for key, value in options.items() if key in SLIDE_OPTIONS}
    config = MilConfig(data=folder, table=tables[0], out=folder, **known)
    slides = [tiling.name for tiling in tiles.tilings]
    rows = read_slide_table(tables[0], config.columns(), config.slide_table, slides).rows
    splits = [SPLIT_OF.get(row.split.lower(), "train") for row in rows]
    held = "test" if "test" in splits else "val"
    tested = [row.slide for row, split in zip(rows, splits, strict=True) if split == held]
    fit = [row.slide for row, split in zip(rows, splits, strict=True) if split != held]
    digest = digest_of([tiles.digest(cache), content([tables[0]], cache)])
    return LabelledSet(
        name,
        _slides(fit, digest),
        _slides(tested or fit, digest),
        digest,
        None,
        str(Path(folder).absolute()),
        {"table": str(tables[0].absolute())},
        not tested,
        len(tiles),
        "slides",
    )


def read_tiled(
    name: str, folder: str | Path, cache: Path, orientation: Orientation | None, options: Mapping[str, Any]
) -> LabelledSet:
    """Read the tiles of test slides, which have no labels: a folder of ``densepath tile``.

    Raises:
        UserError: it is not such a folder.
    """
    if not is_tile_folder(folder):
        raise UserError(f"{folder} is not a folder that densepath tile wrote; tile the test slides, and name it")
    tiles = read_tiles(folder)
    slides, digest = [tiling.name for tiling in tiles.tilings], tiles.digest(cache)
    root = str(Path(folder).absolute())
    return LabelledSet(
        name, _slides([], digest), _slides(slides, digest), digest, None, root, {}, True, len(tiles), "slides"
    )


SLIDE_OPTIONS = ("target", "patient", "slide", "site", "event", "splits", "task", "classes")


def _slides(names: Sequence[str], digest: str) -> ImageSet:
    return ImageSet("", digest, tuple(names), ("",) * len(names), slides=tuple(names))
