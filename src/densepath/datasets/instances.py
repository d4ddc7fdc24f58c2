"""Converts any images with instance label maps of the same names to images and COCO JSON."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from densepath.annotations.coco_checks import Orientation
from densepath.annotations.labels import LABEL_SUFFIXES, unread_classes
from densepath.core.columns import SPLITS
from densepath.core.errors import UserError
from densepath.core.files import require_new_folder
from densepath.core.paths import AnyPath, as_path
from densepath.core.single_values import take_single_values
from densepath.core.streams import say
from densepath.datasets.exclusion import Exclusion
from densepath.datasets.pairing import pair_up
from densepath.datasets.samples import Sample, with_patients
from densepath.datasets.splitting import Splitting, split_samples
from densepath.datasets.writing import write_samples
from densepath.sources.corrupt import CorruptImage
from densepath.sources.listing import SUFFIXES, walk


@take_single_values
def convert_instances(
    source: AnyPath,
    dest: str | Path,
    images: str = "images",
    labels: str = "labels",
    label_suffix: str = "",
    labelled_only: bool = False,
    test_share: float | None = None,
    val_share: float | None = None,
    patient_regex: str | None = None,
    seed: int = 0,
    splits: str | Path | None = None,
    category: str = "object",
    exclude: Sequence[str] = (),
    orientation: Orientation | None = None,
) -> Path:
    """Convert images with instance label maps to a data set for ``detect`` and ``probe``.

    A label map has its image's name, in the same subfolder, and its size: 0 is background, each other number one
    object, as stored in the file. It is a PNG, BMP or TIFF with one channel and one page, a NumPy array (.npy) or a
    MATLAB file (.mat, up to version 7) with one matrix or one called inst_map. The source holds either both splits, as
    train/images, train/labels, test/images, test/labels or images/train, labels/train and so on, perhaps with val, too;
    or, with --test_share or --splits, one set of images to be split. Patients may be named in a manifest.csv.

    Args:
        source: the folder that holds images and label maps.
        dest: a new folder: train/, test/, annotations/train.json, annotations/test.json, manifest.csv.
        images: name of the folder of the images.
        labels: name of the folder of the label maps; it may be the same folder.
        label_suffix: suffix of the names of label maps after the names of their images, for example _mask.
        labelled_only: leave out images without a label map; otherwise they are an error.
        test_share: share of the patients, from 0 to 1, whose images become the test images.
        val_share: share of the patients whose images become validation images.
        patient_regex: a regular expression that finds the patient in an image's name, for example ^TCGA-..-....; if it
            has a group, the patient is what the first group matches. All images of a patient go to the same split. An
            image without a known patient is its own patient.
        seed: seed of the split.
        splits: a CSV file with the columns file and split (train, val, test) of each image, for example the
            manifest.csv of another data set.
        category: category name of the objects.
        exclude: patterns of image files to leave out: ``*`` and ``?`` in a path below their folder, or a name.
        orientation: for an image and a label map with different orientation tags: whether they belong together as
            "stored", or as "viewed", turned by their tags. Without it they are refused.

    Returns:
        ``dest``.

    Raises:
        UserError: images and label maps do not match in name or size, a split would be empty, or ``dest`` is not empty.
    """
    source = as_path(source)
    dest, source = require_new_folder(dest, "the data set", sources=(source,)), Path(source)
    if not source.is_dir():
        raise UserError(f"{source} is not a folder; give the one that holds images and label maps")

    def pairs(image_folder: Path, label_folder: Path, split: str | None = None) -> list[Sample]:
        maps = _files(label_folder, LABEL_SUFFIXES, image_folder)
        maps = [path for path in maps if path.stem.endswith(label_suffix)]
        with suppress(CorruptImage):  # it is named below
            classed.update((path, unread_classes(path)) for path in maps[:1])
        found = _files(image_folder, SUFFIXES, label_folder)
        if image_folder == label_folder:
            labelled = set(maps)
            found = [path for path in found if path not in labelled]
        folders = (image_folder, label_folder)
        return pair_up(found, maps, label_suffix, labelled_only, folders, excluded, orientation, split)

    excluded, classed = Exclusion(exclude), dict[Path, list[str]]()
    if test_share is None and splits is None:
        places = {split: _folders(source, split, images, labels) for split in SPLITS}
        samples = [sample for split, place in places.items() if place for sample in pairs(*place, split)]
    else:
        samples = pairs(source / images, source / labels)
    excluded.report(source)
    if first := next(((path, names) for path, names in classed.items() if names), None):
        say(
            f"densepath: warning: classes of objects ({' and '.join(first[1])} of {first[0]}) are not read: every "
            f"object becomes {category}; write COCO JSON with categories for data coco to keep them"
        )
    how = Splitting(test_share, val_share, patient_regex, seed, splits)
    parts, patients = split_samples(with_patients(samples, source), how, source)
    write_samples(dest, parts, [category], "object", orientation, patients)
    return dest


def _folders(source: Path, split: str, images: str, labels: str) -> tuple[Path, Path] | None:
    """The folders of the images and of the label maps of a split; None if there are no validation images."""
    layouts = [(source / split / images, source / split / labels), (source / images / split, source / labels / split)]
    for layout in layouts:
        if all(folder.is_dir() for folder in layout):
            return layout
    if split == "val":
        return None
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
