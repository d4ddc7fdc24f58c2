"""Features of images with what is known of each: its class, its patient, its split."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from densepath.annotations.classes import FOLDERS, Classes, match_columns, read_classes, read_column
from densepath.annotations.label_table import table_columns
from densepath.annotations.patients import (
    MANIFEST,
    NUMBERED,
    check_spelling,
    folder_of,
    owners_by_name,
    owners_of_volumes,
    patient_in_name,
    splits_of_volumes,
)
from densepath.core.columns import PATIENT_COLUMNS, SPLIT, SPLIT_OF
from densepath.core.errors import UserError, counted, first_few, refuse
from densepath.core.output_names import names_below
from densepath.core.spelling import is_missing
from densepath.core.streams import say
from densepath.sources.listing import LIST_SUFFIXES, list_images
from densepath.sources.volumes.open_store import is_volume_store, open_volumes
from densepath.transfer.embed.feature_file import VOLUMES, Features
from densepath.transfer.probe.folds import given_split, known_splits
from densepath.transfer.probe.metrics import Floats, Integers

Rows = Sequence[Mapping[str, Any]]  # what the index of a store says of volumes


@dataclass(frozen=True)
class Labels:
    """Where classes and patients are found.

    Args:
        labels: "folders" (the topmost folder of an image, below folders of splits if there are any), or the path of a
            table, see :func:`densepath.annotations.classes.read_classes`.
        patient: a column of the table, or of a ``manifest.csv`` of the images.
        patient_regex: a regular expression that finds the patient in an image's name.
        target: the column of the table with the classes, or with one of several labels; None for its column label.
    """

    labels: str
    patient: str | None = None
    patient_regex: str | None = None
    target: str | None = None

    def __post_init__(self) -> None:
        if self.patient is not None and self.patient_regex is not None:
            raise UserError("--patient and --patient_regex both name the patients; give one of them")


@dataclass(frozen=True, eq=False)
class Labelled:
    """Images with their features.

    Args:
        names: (N,) of the images.
        features: (N, D).
        classes: of the images.
        patients: (N,) the number of each image's patient, from 0.
        patient_names: of these numbers.
        by_patient: where the patients come from; "" if unknown: then each image is a patient of its own.
        test: (N,) whether an image is a test image, if the data says so.
    """

    names: list[str]
    features: Floats
    classes: Classes
    patients: Integers
    patient_names: list[str]
    by_patient: str
    test: npt.NDArray[np.bool_] | None

    def __len__(self) -> int:
        return len(self.names)


class Listed:
    """Names of images without pixels."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names

    def __len__(self) -> int:
        return len(self._names)

    def names(self, position: int) -> str:
        return self._names[position]


def label(features: Features, how: Labels, data: str | Path | None) -> Labelled:
    """Find the class, the patient and the split of each image.

    A split is the column ``split`` of the table, or the topmost folders if these are train and test (or val), or that
    of a store of volumes.

    Args:
        features: of the images; their names are paths.
        how: where classes and patients are found.
        data: the images, by default those that the features were made of: a ``manifest.csv`` next to them, or their
            names, may tell patients, if they can still be read.

    Raises:
        UserError: an image has no class or no patient, or there are fewer than two classes.
    """
    names, table = features.names, None if how.labels == FOLDERS else how.labels
    noted = features.notes.get("data")
    data = (noted if isinstance(noted, str) and _can_be_read(noted) else None) if data is None else data
    where = "" if data is None else str(data)
    listed = listed_as(names, table, where)
    classes, splits, whose = classes_and_splits(names, listed, table, how.target)
    test = given_split(splits, whose) if splits else None
    volumes = volumes_of(features, data)
    if test is None and (parts := splits_of_volumes(volumes)):
        test = given_split(parts, where or "the store of volumes")
    owners, source = owners_of(names, listed, how, table, data, volumes)
    check_spelling(owners, names)
    patient_names, patients = np.unique(owners, return_inverse=True)
    values = features.values.astype(np.float64)
    return Labelled(names, values, classes, patients.astype(np.int64), patient_names.tolist(), source, test)


def listed_as(names: list[str], table: str | None, where: str) -> Any:
    """Images as a table names them, from their names below their folder, which is ``where``; "" if it is not known."""
    return Listed(names if table is None else _paths(names, where))


def classes_and_splits(
    names: list[str], listed: Any, table: str | None, target: str | None = None
) -> tuple[Classes, list[str], str]:
    """The classes of images, the name of each image's split ([] if they are not divided), and what says so.

    Args:
        names: of the images below their folder.
        listed: the images, named as the table names them.
        table: of the labels; None if these are folders, below folders of splits if there are any.
        target: the column of the table with the classes; by default ``label``.

    Raises:
        UserError: an image has no class or no split, or there are fewer than two classes.
    """
    tops = [name.partition("/")[0].lower() if "/" in name else "" for name in names]
    divided = set(tops) <= set(SPLIT_OF) and len(set(tops)) > 1
    inside = Listed([name.partition("/")[2] for name in names]) if divided else listed
    classes = read_classes(inside, FOLDERS, "") if table is None else read_classes(listed, table, column=target)
    if table is not None and SPLIT in table_columns(table):
        return classes, known_splits(read_column(listed, table, SPLIT), table), table
    return classes, tops if divided else [], "the folder of images"


def volumes_of(features: Features, data: str | Path | None) -> Rows:
    """What a store of volumes says of each, or, if it is not at hand, what the features note of them; () for others."""
    rows = [row | {"name": name} for name, row in features.notes.get(VOLUMES, {}).items()]
    if data is not None and is_volume_store(data):
        rows += open_volumes(data).rows
    known = {row["name"]: row for row in rows}
    return [known[name] for name in features.names] if known.keys() >= {*features.names} else ()


def _can_be_read(data: str) -> bool:
    """Whether the names of some images can be looked at: those in a list must still exist; if not, say so."""
    if data.lower().endswith(LIST_SUFFIXES) and os.path.isfile(data):
        try:
            list_images(data)
        except UserError as error:
            say(f"densepath: warning: {error}; the features are used, but not the patients that this list may name")
            return False
    return bool(data)


def _paths(names: list[str], data: str) -> list[str]:
    """The paths of images, which tables may have, from their names below the folder that contains all."""
    if os.path.isdir(data):
        return [os.path.join(os.path.abspath(data), name) for name in names]
    if not data.lower().endswith(LIST_SUFFIXES) or not os.path.isfile(data):
        return names
    paths = list(list_images(data))
    known = dict(zip((name.replace(os.sep, "/") for name in names_below(paths, data)), paths, strict=True))
    return [known.get(name, name) for name in names]


def owners_of(
    names: list[str],
    listed: Any,
    how: Labels,
    table: str | None,
    data: str | Path | None,
    volumes: Rows = (),
) -> tuple[list[str], str]:
    """The patient of each image, and where it is found: "" if some are unknown, whose images have their own names.

    Args:
        names: of the images.
        listed: these names as the table has them.
        how: where patients are found.
        table: of the labels; None if these are folders.
        data: the images, if they are at hand.
        volumes: what their store says of each, if they are volumes: the patients where nothing else names those of all.

    Raises:
        UserError: an image has no patient where the user names a column or a pattern.
    """
    owners, where = _owners_in_names(names, listed, how, table, data)
    # All of one source: in two, a patient may have two names.
    if volumes and not where and (owners == names or all(row["patient"] for row in volumes)):
        return owners_of_volumes(volumes, "" if data is None else data)
    return owners, where


def warn_of_unknown_patients(by_patient: str) -> None:
    """Say that the intervals of scores are those of images, if patients are unknown: see :func:`owners_of`."""
    if not by_patient:
        say(
            "densepath: warning: the patients are unknown, so intervals count each image as one; name them with "
            "--patient or --patient_regex"
        )


def _owners_in_names(
    names: list[str], listed: Any, how: Labels, table: str | None, data: str | Path | None
) -> tuple[list[str], str]:
    if how.patient_regex is not None:
        return [patient_in_name(name, how.patient_regex) for name in names], "--patient_regex"
    source, column = table, how.patient
    if column is not None and source is None:
        if data is None:
            raise UserError("--patient names a column of a table; give the table with --labels, or --patient_regex")
        source = _manifest(data)
    if column is None and source is not None:
        known = table_columns(source)
        column = next((name for name in PATIENT_COLUMNS if name in known), None)
    if column is not None and source is not None:
        given = [row[0] if row is not None else "" for row in match_columns(listed, source, [column]).values]
        unknown = [name for name, owner in zip(names, given, strict=True) if is_missing(owner)]
        if how.patient is not None:
            refuse(unknown, f"images without a {column} in {source}", "fill it in")
        if unknown:
            say(
                f"densepath: warning: {counted(len(unknown), 'image has', 'images have')} no {column} in {source}, and "
                f"each counts as a patient of its own: {first_few(unknown)}"
            )
        owners = [name if is_missing(owner) else owner for name, owner in zip(names, given, strict=True)]
        return owners, "" if unknown else f"{column} in {source}"
    if data is None:
        return list(names), ""
    paths = _paths(names, str(data))
    owners, where = owners_by_name(data, paths)
    return [name if owner == path else owner for name, path, owner in zip(names, paths, owners, strict=True)], where


def _manifest(data: str | Path) -> str:
    """The manifest in the folder of the images, or if that has none, in its parent."""
    folder = folder_of(data)
    near, above = folder / MANIFEST, folder.absolute().parent / MANIFEST
    return str(above if above.is_file() and not near.is_file() else near)


def join(train: Labelled, test: Labelled) -> Labelled:
    """Training images and test images of another source, with the classes of both.

    Raises:
        UserError: the test images have a class that the training images lack, or a patient under another name.
    """
    if lacking := set(test.classes.names) - set(train.classes.names):
        raise UserError(f"the test images have the class {min(lacking)}, which the training images lack; name it alike")
    order = torch.tensor([train.classes.names.index(name) for name in test.classes.names], dtype=torch.int32)
    labels = torch.cat((train.classes.labels, order[test.classes.labels.long()]))
    known = bool(train.by_patient and test.by_patient) and NUMBERED not in (train.by_patient, test.by_patient)
    owners = [[part.patient_names[number] for number in part.patients] for part in (train, test)]
    if known:
        check_spelling(owners[0] + owners[1])
    else:
        owners = [[f"{side}/{owner}" for owner in own] for side, own in zip(("train", "test"), owners, strict=True)]
    patient_names, patients = np.unique(owners[0] + owners[1], return_inverse=True)
    return Labelled(
        [f"train/{name}" for name in train.names] + [f"test/{name}" for name in test.names],
        np.concatenate((train.features, test.features)),
        Classes(train.classes.names, labels),
        patients.astype(np.int64),
        patient_names.tolist(),
        train.by_patient if known else "",
        np.repeat([False, True], [len(train), len(test)]),
    )
