"""Images or volumes with their true classes, patients and official split."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from densepath.annotations.coco import CocoImages, open_split
from densepath.annotations.patients import check_spelling, splits_of_volumes
from densepath.core.columns import SPLIT_OF
from densepath.core.errors import UserError, refuse
from densepath.core.output_names import names_below, refuse_repeated
from densepath.core.records import CONFIG
from densepath.core.streams import say_left_out
from densepath.core.system import usable_cores, with_progress
from densepath.core.threads import in_threads
from densepath.sources.corrupt import CorruptImage
from densepath.sources.image_files import ImageFiles
from densepath.sources.names import AllNames
from densepath.sources.open import find_source
from densepath.sources.pixel_source import PixelSource
from densepath.sources.volumes.store import VolumeStore
from densepath.transfer.classify.cohort import Pool, files_of, open_pool, paths_of
from densepath.transfer.classify.targets import Targets
from densepath.transfer.probe.labelled import Labels, Listed, owners_of
from densepath.transfer.probe.metrics import Integers
from densepath.transfer.segment.config import BESIDE, SegmentConfig
from densepath.transfer.segment.legend import Legend, make_legend
from densepath.transfer.segment.matching import beside, match_labels
from densepath.transfer.segment.truth import LabelMaps, Outlines, Truth, VolumeLabels

MAX_SIDE = 2**16  # pixels: images are never reduced, as their labels would not be


@dataclass(frozen=True, eq=False)
class Found:
    """Images with their label maps, before the values of these are known to be classes.

    Args:
        pool: the images; the targets are which values are present.
        maps: their label maps.
        values: value -> the images that have it.
        named: names of values that the data set knows.
        digests: of the label maps.
        longest: the largest side of the images along each axis.
    """

    pool: Pool
    maps: LabelMaps
    values: dict[int, list[str]]
    named: dict[int, str]
    digests: tuple[str, ...]
    longest: tuple[int, ...]

    def cases(self, legend: Legend) -> Cases:
        """The images with the classes of their pixels; targets are which scored regions an image has."""
        truth = Truth(self.maps, legend)
        numbers = {name: k for k, name in enumerate(self.pool.names)}
        present = np.zeros((len(self.pool), len(legend)))
        for value, names in self.values.items():
            if value not in legend.ignored:
                of_class = 1 if legend.merged and value > 0 else legend.values.index(value)
                present[[numbers[name] for name in names], of_class] = 1
        regions = [present[:, list(members)].max(1) for _, members in legend.regions]
        targets = Targets(legend.scored, np.stack(regions, axis=1), False)
        return Cases(replace(self.pool, targets=targets), truth, self.digests, self.longest)


@dataclass(frozen=True, eq=False)
class Cases:
    """Images with the classes of their pixels.

    Args:
        pool: the images with patients and splits; the targets are which scored regions are present.
        truth: the classes.
        digests: of all label maps that were found.
        longest: the largest side along each axis of all images that were found.
    """

    pool: Pool
    truth: Truth
    digests: tuple[str, ...] = ()
    longest: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.pool)

    def take(self, positions: Integers) -> Cases:
        """Only the images at some positions."""
        return Cases(self.pool.take(positions), self.truth.take(positions))

    def opened(self, config: Any, device: torch.device) -> Cases:
        """With images in memory where that is useful, without damaged ones."""
        pool = open_pool(self.pool, config, device)
        if len(pool) == len(self.pool):
            return Cases(pool, self.truth)
        kept = {name: k for k, name in enumerate(self.pool.names)}
        return Cases(pool, self.truth.take(np.array([kept[name] for name in pool.names], np.int64)))


def read_cases(config: SegmentConfig) -> tuple[Cases, Cases | None]:
    """The images of ``config.data`` and of ``config.test_data``, with one legend.

    Raises:
        UserError: labels or patients are missing or invalid.
    """
    train = _find(config, config.data, config.labels)
    test = None
    if config.test_data is not None:
        test = _find(config, config.test_data, config.labels if config.test_labels is None else config.test_labels)
        if test.pool.images.spec.ndim != train.pool.images.spec.ndim:
            raise UserError("images are tested on images, and volumes on volumes; name others with --test_data")
    values = {v: [*names] for v, names in train.values.items()}
    for value, names in (test.values if test else {}).items():
        values.setdefault(value, []).extend(names)
    legend = make_legend(config, values, train.named)
    return train.cases(legend), test.cases(legend) if test else None


def _find(config: SegmentConfig, data: str | Path, labels: str | Path) -> Found:
    """The images of a source with their label maps."""
    splits: list[str] = []
    named: dict[int, str] = {}
    maps: LabelMaps
    images: PixelSource
    if (Path(data) / "annotations").is_dir() and str(labels) == BESIDE:
        images, maps, splits, named = _outlined(config, data)
    else:
        images = find_source(data, MAX_SIDE, config.exclude)
        if isinstance(images, VolumeStore):
            if str(labels) != BESIDE:
                raise UserError(
                    "the labels of volumes are in their store; convert them together, and leave --labels out"
                )
            images, maps, splits, named = _volumes(images)
        elif isinstance(images, ImageFiles):
            places = list(AllNames(images))
            folder = beside(data) if str(labels) == BESIDE else labels
            maps = LabelMaps(match_labels(places, folder, data, whole=not config.exclude))
        else:
            raise UserError(f"{data} holds neither image files nor volumes; label maps need one of these")
    paths = list(AllNames(images))
    names = names_below(paths, data) if isinstance(images, ImageFiles) else paths
    names = [name.replace(os.sep, "/") for name in names]
    refuse_repeated(names, data)
    tops = [name.partition("/")[0].lower() if "/" in name else "" for name in names]
    if not splits and set(tops) <= set(SPLIT_OF) and len(set(tops)) > 1:
        splits = tops
    how = Labels("folders", config.patient, config.patient_regex)
    volumes = images.rows if isinstance(images, VolumeStore) else []
    owners, source = owners_of(names, Listed(paths), how, None, data, volumes)
    check_spelling(owners, names, data, warn=(Path(config.out) / CONFIG).exists())  # a resumed run keeps its division
    values, digests, longest = _facts(images, maps, names)
    targets = Targets((), np.zeros((len(names), 0)), False)
    files = files_of(images, data, paths)
    pool = Pool(images, names, targets, owners, source, splits, files, paths_of(images))
    return Found(pool if config.official else replace(pool, splits=[]), maps, values, named, digests, longest)


def _outlined(config: SegmentConfig, data: str | Path) -> tuple[PixelSource, LabelMaps, list[str], dict[int, str]]:
    """A data set of outlined objects, as ``densepath data`` writes it: both splits, and its categories as classes."""
    if config.exclude:
        raise UserError("--exclude is for folders of images; convert the data set again without these images")
    parts: list[CocoImages] = [open_split(data, split) for split in ("train", "test")]
    names = parts[0].category_names
    if set(parts[1].category_names) != set(names):
        raise UserError(f"training and test objects of {data} have other categories; convert them together")
    parts[1].order_categories(names)
    paths = [str(path) for part in parts for path in part.paths()]
    maps = Outlines([(part, k) for part in parts for k in range(len(part))])
    splits = [split for split, part in zip(("train", "test"), parts, strict=True) for _ in range(len(part))]
    return ImageFiles(paths, MAX_SIDE), maps, splits, {0: "background", **dict(enumerate(names, 1))}


def _volumes(store: VolumeStore) -> tuple[PixelSource, LabelMaps, list[str], dict[int, str]]:
    """The volumes of a store that have labels."""
    labelled = [k for k, row in enumerate(store.rows) if row["labels"] is not None]
    if not labelled:
        raise UserError(f"no volume of {store.folder} has labels; convert the labels with the volumes")
    if len(labelled) < len(store):
        lacking = [store.names(k) for k, row in enumerate(store.rows) if row["labels"] is None]
        say_left_out(lacking, "volume", "without labels")
        store = store.take(torch.tensor(labelled))
    named = {int(code): name for code, name in store.index["label_names"].items()}
    return store, VolumeLabels(store), splits_of_volumes(store.rows), named


def _facts(
    images: PixelSource, maps: LabelMaps, names: Sequence[str]
) -> tuple[dict[int, list[str]], tuple[str, ...], tuple[int, ...]]:
    """Value -> the images that have it; a digest of each label map; and the largest side along each axis.

    Raises:
        UserError: a label map is damaged, or has another size than its image.
    """
    found: dict[int, list[str]] = {}
    wrong, digests, longest = [], [], (0,) * images.spec.ndim
    read = in_threads(maps.facts, range(len(names)), usable_cores(), "label maps")
    try:
        for k, (size, values, digest) in enumerate(with_progress(read, len(names), "reading label maps")):
            digests.append(digest)
            own = tuple(images.sizes(torch.tensor([k]))[0].tolist())
            longest = tuple(map(max, longest, own))
            if own != size:
                wrong.append(
                    f"{names[k]} ({' x '.join(map(str, own[::-1]))}, labels {' x '.join(map(str, size[::-1]))})"
                )
            for value in values:
                found.setdefault(value, []).append(names[k])
    except CorruptImage as error:
        raise UserError(f"{error}; replace the file, or leave the image out with --exclude") from error
    refuse(wrong, "label maps of another size than their images", "give the maps of these images")
    return found, tuple(digests), longest
