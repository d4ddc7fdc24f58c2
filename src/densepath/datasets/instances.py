"""Converts any images with instance label maps of the same names to images and COCO JSON."""

from __future__ import annotations

import hashlib
from pathlib import Path

from densepath.annotations.coco_checks import Orientation
from densepath.annotations.labels import LABEL_SUFFIXES
from densepath.annotations.pairs import Pair, pair_up, write_pairs
from densepath.annotations.patients import patient_in_name
from densepath.core.errors import UserError
from densepath.core.files import require_new_folder
from densepath.core.streams import say
from densepath.sources.listing import SUFFIXES, walk

_SPLITS = ("train", "test")


def convert_instances(
    source: str | Path,
    dest: str | Path,
    images: str = "images",
    labels: str = "labels",
    label_suffix: str = "",
    labelled_only: bool = False,
    test_share: float | None = None,
    patient_regex: str | None = None,
    seed: int = 0,
    category: str = "object",
    orientation: Orientation | None = None,
) -> Path:
    """Convert images with instance label maps to a data set for ``detect`` and ``probe``.

    A label map has its image's name, in the same subfolder, and its size: 0 is background, each other number one
    object, as stored in the file. It is a PNG, BMP or TIFF with one channel and one page, a NumPy array (.npy) or a
    MATLAB file (.mat, up to version 7) with one matrix or one called inst_map. The source holds either both splits, as
    train/images, train/labels, test/images, test/labels or images/train, labels/train and so on; or, with --test_share,
    one set of images to be split.

    Args:
        source: the folder that holds images and label maps.
        dest: a new folder: train/, test/, annotations/train.json, annotations/test.json.
        images: name of the folder of the images.
        labels: name of the folder of the label maps; it may be the same folder.
        label_suffix: suffix of the names of label maps after the names of their images, for example _mask.
        labelled_only: leave out images without a label map; otherwise they are an error.
        test_share: share of the images, from 0 to 1, that become the test images.
        patient_regex: with --test_share, a regular expression that finds the patient in an image's name, for example
            ^TCGA-..-....; if it has a group, the patient is what the first group matches. All images of a patient go to
            the same split. Without it, each image is its own patient.
        seed: seed of the split.
        category: category name of the objects.
        orientation: for an image and a label map with different orientation tags: whether they belong together as
            "stored", or as "viewed", turned by their tags. Without it they are refused.

    Returns:
        ``dest``.

    Raises:
        UserError: images and label maps do not match in name or size, a split would be empty, or ``dest`` is not empty.
    """
    dest, source = require_new_folder(dest, "the data set"), Path(source)
    if not source.is_dir():
        raise UserError(f"{source} is not a folder; give the one that holds images and label maps")

    def pairs(image_folder: Path, label_folder: Path) -> list[Pair]:
        maps = _files(label_folder, LABEL_SUFFIXES, image_folder)
        maps = [path for path in maps if path.stem.endswith(label_suffix)]
        found = _files(image_folder, SUFFIXES, label_folder)
        if image_folder == label_folder:
            found = [path for path in found if path not in set(maps)]
        return pair_up(found, maps, label_suffix, labelled_only, (image_folder, label_folder))

    patients = None
    if test_share is None:
        splits = {split: pairs(*_folders(source, split, images, labels)) for split in _SPLITS}
    else:
        splits, patients = _split(pairs(source / images, source / labels), test_share, patient_regex, seed)
    for split, found in splits.items():
        if not found:
            raise UserError(f"{source} has no {split} image; add at least one")
    return write_pairs(dest, splits, category, "objects", orientation, patients, asks=True)


def _folders(source: Path, split: str, images: str, labels: str) -> tuple[Path, Path]:
    """The folders of the images and of the label maps of a split."""
    layouts = [(source / split / images, source / split / labels), (source / images / split, source / labels / split)]
    for layout in layouts:
        if all(folder.is_dir() for folder in layout):
            return layout
    raise UserError(
        f"{source} holds neither {split}/{images} with {split}/{labels} nor {images}/{split} with {labels}/{split}; "
        "name them with --images and --labels, or split one set of images with --test_share"
    )


def _files(folder: Path, suffixes: tuple[str, ...], other: Path) -> list[Path]:
    """The files below a folder, except those in another folder within it."""
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; name it with --images and --labels")
    within = other != folder and other.is_relative_to(folder)
    files = map(Path, walk(folder, suffixes))
    return [path for path in files if not (within and path.is_relative_to(other))]


def _split(
    pairs: list[Pair], share: float, patient: str | None, seed: int
) -> tuple[dict[str, list[Pair]], dict[str, int] | None]:
    """Split pairs by patient; the split of a patient does not depend on the order of the files.

    Returns:
        The splits, and their numbers of patients if ``patient`` is given.
    """
    if not 0 < share < 1:
        raise UserError(f"--test_share is {share}; give a number between 0 and 1")
    owners = {pair.name: pair.name if patient is None else patient_in_name(pair.name, patient) for pair in pairs}
    ranked = sorted(set(owners.values()), key=lambda owner: hashlib.sha256(f"{seed} {owner}".encode()).digest())
    test = set(ranked[: max(1, round(share * len(ranked)))])
    splits = {split: [pair for pair in pairs if (owners[pair.name] in test) == (split == "test")] for split in _SPLITS}
    if patient is None:
        return splits, None
    if len(ranked) == len(pairs) > 1:
        say(f"densepath: warning: --patient_regex {patient!r} finds another patient in each image, first {ranked[0]}")
    return splits, {"train": len(ranked) - len(test), "test": len(test)}
