"""Images with their labels and patients."""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from densepath.annotations.classes import FOLDERS, match_columns
from densepath.annotations.label_table import table_columns
from densepath.annotations.patients import check_spelling, splits_of_volumes
from densepath.core.columns import SPLIT, SPLIT_OF
from densepath.core.errors import counted, first_few, refuse
from densepath.core.output_names import names_below, refuse_repeated
from densepath.core.records import CONFIG
from densepath.core.streams import say
from densepath.sources.image_files import ImageFiles
from densepath.sources.names import AllNames
from densepath.sources.open import cache_images
from densepath.sources.pixel_source import PixelSource
from densepath.sources.restrict import take
from densepath.sources.volumes.store import VolumeStore
from densepath.transfer.classify.config import ClassifyConfig
from densepath.transfer.classify.targets import Targets, read_targets
from densepath.transfer.probe.folds import PART_NUMBERS
from densepath.transfer.probe.labelled import Labels, Listed, owners_of
from densepath.transfer.probe.metrics import Floats, Integers

_SHOWN = 12  # labels in a line


@dataclass(frozen=True, eq=False)
class Pool:
    """Images of a source with what is known of each.

    Args:
        images: the source.
        names: (N,) the names of the images below the folder of the data.
        targets: of the images.
        owners: (N,) the patient of each image; its name where patients are unknown.
        by_patient: where the patients come from; "" if unknown.
        splits: (N,) names of splits, in lower case; () without an official split.
        files: (N,) what is the same for two names of one file.
        paths: (N,) the file of each image; () if the images have none of their own.
    """

    images: PixelSource
    names: list[str]
    targets: Targets
    owners: list[str]
    by_patient: str
    splits: list[str]
    files: list[Hashable]
    paths: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.names)

    def take(self, positions: Integers) -> Pool:
        """Only the images at some positions."""
        places = positions.tolist()
        return replace(
            self,
            images=take(self.images, torch.from_numpy(positions)),
            names=[self.names[p] for p in places],
            targets=self.targets.take(positions),
            owners=[self.owners[p] for p in places],
            splits=[self.splits[p] for p in places] if self.splits else [],
            files=[self.files[p] for p in places],
            paths=[self.paths[p] for p in places] if self.paths else (),
        )

    def gather(self, index: Tensor, pin: bool = False) -> Tensor:
        """(B, T) float32 targets of the images at the positions ``index`` (B,)."""
        values = torch.from_numpy(self.targets.values)[index].float()
        return values.pin_memory() if pin else values

    def describe(self) -> str:
        """The images in a line."""
        patients = f" of {counted(len(set(self.owners)), 'patient')}" if self.by_patient else ""
        shown = [f"{n} ({count})" for n, count in zip(self.targets.names, self.targets.counts(), strict=True)]
        return f"{counted(len(self), 'image')}{patients}: {first_few(shown, _SHOWN)}"


def read_pool(
    config: ClassifyConfig, images: PixelSource, data: str | Path, labels: str | Path, whole: bool = True
) -> Pool:
    """Find the labels, the patient and the split of each image of a source.

    Args:
        config: says where they are.
        images: the source.
        data: where it is.
        labels: "folders" or a table.
        whole: whether these are all images, or those of a test, which need not have all labels.

    Raises:
        UserError: labels, patients or splits are missing or invalid.
    """
    paths = list(AllNames(images))
    names = names_below(paths, data) if isinstance(images, ImageFiles) else paths
    names = [name.replace(os.sep, "/") for name in names]
    refuse_repeated(names, data)
    listed = Listed([_absolute(path, data) for path in paths])
    table = None if str(labels) == FOLDERS else str(labels)
    tops = [name.partition("/")[0].lower() if "/" in name else "" for name in names]
    divided = set(tops) <= set(SPLIT_OF) and len(set(tops)) > 1
    splits = tops if divided else []
    found, kept = read_targets(config, names, listed, table, divided, whole)
    places = np.flatnonzero(kept)
    if len(places) < len(names):  # the others need neither split nor patient
        images, found = take(images, torch.from_numpy(places)), found.take(places)
        paths, names, splits = ([part[p] for p in places] if part else [] for part in (paths, names, splits))
        listed = Listed([_absolute(path, data) for path in paths])
    volumes = images.rows if isinstance(images, VolumeStore) else []
    if table is not None and SPLIT in table_columns(table):
        given = match_columns(listed, table, [SPLIT]).values
        splits = [row[0].lower() if row is not None else "" for row in given]
        wrong = [f"{name} ({split!r})" for name, split in zip(names, splits, strict=True) if split not in PART_NUMBERS]
        refuse(wrong, f"images with another split than train, val or test in {table}", "correct the column split")
    elif of_store := splits_of_volumes(volumes):
        splits = of_store
    how = Labels(str(config.labels), config.patient, config.patient_regex)
    owners, source = owners_of(names, listed, how, table, data, volumes)
    check_spelling(owners, names, data, warn=(Path(config.out) / CONFIG).exists())  # a resumed run keeps its division
    files = files_of(images, data, paths)
    return Pool(images, names, found, owners, source, splits, files, paths_of(images))


def open_pool(pool: Pool, config: ClassifyConfig, device: torch.device) -> Pool:
    """The pool with images in memory where that is useful, without damaged ones.

    Raises:
        UserError: images are decoded into memory, and one cannot be read now, but perhaps later: the test, or the
            training, would lack it until the end.
    """
    cached = cache_images(pool.images, config.cache, device, all_of_them=True)
    pool = replace(pool, images=cached)
    if damaged := sorted(cached.corrupt):
        say(
            f"densepath: {counted(len(damaged), 'damaged image is', 'damaged images are')} left out: "
            f"{first_few([pool.names[p] for p in damaged])}"
        )
        pool = pool.take(np.setdiff1d(np.arange(len(pool)), damaged))
    return pool


def still_there(before: Pool, after: Pool, positions: Integers) -> Integers:
    """Positions of images in a pool from which damaged ones were removed, for those that are left."""
    number = {name: place for place, name in enumerate(after.names)}
    names = [before.names[p] for p in positions]
    return np.array([number[name] for name in names if name in number], np.int64)


def files_of(images: PixelSource, data: str | Path, names: Sequence[str]) -> list[Hashable]:
    """(N,) what is the same for two names of one file: its number on the disk, or the name in the store ``data``."""
    return [file_of(name) if isinstance(images, ImageFiles) else (os.path.realpath(data), name) for name in names]


def paths_of(images: PixelSource) -> Sequence[str]:
    """(N,) the file of each image; () for packed images and tiles of slides, whose names are not paths."""
    if isinstance(images, VolumeStore):
        return [str(images.path(position)) for position in range(len(images))]
    return list(AllNames(images)) if isinstance(images, ImageFiles) else ()


def file_of(path: str) -> Hashable:
    """A file by its number on the disk, which links to it share."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):  # a text with a null character is not a path
        return path
    return found.st_dev, found.st_ino


def known_as(pool: Pool, positions: Iterable[int]) -> set[Hashable]:
    """What a line of a list may name images by: their names, patients and files."""
    return {own for p in positions for own in (pool.names[p], pool.owners[p], pool.files[p])}


def meanings(lines: Iterable[str], pool: Pool) -> dict[str, set[Hashable]]:
    """What each line of a list names of a pool: an image, a patient or a file.

    Its backslashes separate folders if it names nothing as it is.
    """
    known, found = known_as(pool, range(len(pool))), {}
    for line in lines:
        as_given, slashes = {line, file_of(line)}, line.replace("\\", "/")
        found[line] = {slashes, file_of(slashes)} if known.isdisjoint(as_given) else as_given
    return found


def _absolute(path: str, data: str | Path) -> str:
    """A path as tables may have it: absolute, or below the folder of the images."""
    if os.path.isabs(path) or os.path.exists(path) or not os.path.isdir(data):
        return path
    return os.path.join(data, path)


def same_labels(names: Sequence[str], test: Pool, absent: float, whose: str = "the training images lack") -> Pool:
    """Test images with the labels of a classifier, in its order.

    Args:
        names: the classes or labels.
        test: the images.
        absent: the value of labels that no test image names: 0 for lists of labels, NaN for columns.
        whose: lacks the others, in words.

    Raises:
        UserError: the test images have a label that is not among them.
    """
    refuse(
        [name for name in test.targets.names if name not in names],
        f"labels of test images that {whose}",
        "name them alike",
    )
    order = [names.index(name) for name in test.targets.names]
    values: Floats
    if test.targets.exclusive:
        values = np.array(order, np.float64)[test.targets.values[:, 0].astype(np.int64)][:, None]
    else:
        values = np.full((len(test), len(names)), absent)
        values[:, order] = test.targets.values
    return replace(test, targets=replace(test.targets, names=tuple(names), values=values))
