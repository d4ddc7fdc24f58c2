"""Cityscapes: streets, each pixel of one of 19 classes."""

from __future__ import annotations

import os
import shutil
import sys
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from densepath.annotations.labels import read_labels
from densepath.core.errors import UserError, counted, refuse
from densepath.core.files import atomic_write, require_new_folder
from densepath.core.single_values import take_single_values
from densepath.core.streams import write_line
from densepath.core.system import usable_cores, with_progress
from densepath.core.threads import in_threads
from densepath.datasets.labelled_lists import find_place
from densepath.datasets.published import CITYSCAPES
from densepath.sources.corrupt import CorruptImage
from densepath.sources.decode import read_header

_IMAGES, _LABELS = "leftImg8bit", "gtFine"
_MAP = "_gtFine_labelIds.png"
_SPLITS = {"train": "train", "val": "test"}  # the labels of the test images are not published
# The values in label maps of the 19 classes, in the order of the training classes 0 to 18; the others do not count.
_CLASSES = {
    "road": 7, "sidewalk": 8, "building": 11, "wall": 12, "fence": 13, "pole": 17, "traffic light": 19,
    "traffic sign": 20, "vegetation": 21, "terrain": 22, "sky": 23, "person": 24, "rider": 25, "car": 26, "truck": 27,
    "bus": 28, "train": 31, "motorcycle": 32, "bicycle": 33,
}  # fmt: skip
_IGNORED = 255


@take_single_values
def convert_cityscapes(source: str | Path, dest: str | Path) -> Path:
    """Write Cityscapes as images and label maps of its 19 training classes, for ``segment --config cityscapes_fcn``.

    As published (https://www.cityscapes-dataset.com, on registration, not for commercial use): leftImg8bit and gtFine,
    each with train, val and test, and in these a folder for each city; 2,975 training and 500 validation images. The
    validation images are the test, as in papers: the labels of the published test images are hidden. What differs is
    reported.

    Args:
        source: the folder that holds leftImg8bit and gtFine, or its parent.
        dest: a new folder: images/train, images/test (hard links where the disk allows them, else copies), and
            labels/train, labels/test with the classes 0 to 18, and 255 where none counts.

    Returns:
        ``dest``/images, for ``--data``.

    Raises:
        UserError: the layout is another one, an image has no label map or another size, or a file is damaged.

    Source: Cordts et al., "The Cityscapes Dataset for Semantic Urban Scene Understanding", CVPR 2016.
    """
    dest = require_new_folder(dest, "the data set", sources=(source,))
    root = find_place(source, (_IMAGES, _LABELS), "Cityscapes")
    found = {name: sorted((root / _IMAGES / name).glob(f"*/*_{_IMAGES}.png")) for name in _SPLITS}
    missing = [name for name, own in found.items() if not own]
    if missing:
        raise UserError(f"{root / _IMAGES} has no {' and no '.join(missing)} images, as Cityscapes is published")
    images = [path for own in found.values() for path in own]
    without = [str(path.relative_to(root)) for path in images if not _label_map(root, path).is_file()]
    refuse(without, f"images without a file *{_MAP} in {root / _LABELS}", "download gtFine_trainvaltest.zip again")
    known = {path.name.removesuffix(_MAP) for split in _SPLITS for path in (root / _LABELS / split).glob(f"*/*{_MAP}")}
    alone = sorted(known - {_frame(path) for path in images})
    refuse(alone, f"label maps without an image in {root / _IMAGES}", "download leftImg8bit_trainvaltest.zip again")
    with atomic_write(dest) as folder:
        for split in _SPLITS.values():
            for kind in ("images", "labels"):
                (folder / kind / split).mkdir(parents=True)
        written = in_threads(partial(_write, root, folder), images, usable_cores(), "label maps")
        seen = [*with_progress(written, len(images), "writing label maps")]
    counts = {_SPLITS[name]: len(own) for name, own in found.items()}
    for split, count in counts.items():
        write_line(f"{split}: {counted(count, 'image')}", sys.stdout)
    absent = [name for k, name in enumerate(_CLASSES) if not any(k in values for values in seen)]
    if absent:
        write_line(f"no pixel of: {', '.join(absent)}", sys.stdout)
    CITYSCAPES.report(counts)
    return dest / "images"


def _frame(path: Path) -> str:
    return path.name.removesuffix(f"_{_IMAGES}.png")


def _label_map(root: Path, image: Path) -> Path:
    city = image.parent
    return root / _LABELS / city.parent.name / city.name / f"{_frame(image)}{_MAP}"


def _write(root: Path, folder: Path, path: Path) -> set[int]:
    """Link an image, and write its label map with the numbers of the training classes; the classes that it has."""
    split = _SPLITS[path.parent.parent.name]
    try:
        header, values = read_header(path), read_labels(_label_map(root, path))
    except CorruptImage as error:
        raise UserError(f"{error}; download it again") from error
    if values.shape != (header.height, header.width):
        raise UserError(
            f"{_label_map(root, path)} has {values.shape[1]} x {values.shape[0]} px, but its image {header.width} x "
            f"{header.height}; download both again"
        )
    table = np.full(256, _IGNORED, np.uint8)
    table[list(_CLASSES.values())] = np.arange(len(_CLASSES), dtype=np.uint8)
    if values.min() < 0 or values.max() > _IGNORED:
        raise UserError(f"{_label_map(root, path)} holds values beyond 0 to 255; download it again")
    classes = table[values]
    Image.fromarray(classes).save(folder / "labels" / split / f"{_frame(path)}.png")
    place = folder / "images" / split / f"{_frame(path)}.png"
    try:
        os.link(path.resolve(), place)
    except OSError:  # another disk, or one without links
        shutil.copyfile(path, place)
    return {int(value) for value in np.unique(classes)}
