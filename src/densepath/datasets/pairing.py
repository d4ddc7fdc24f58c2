"""Images and their instance label maps, paired by name and compared: the samples of a data set with label maps."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

from densepath.annotations.coco_checks import Orientation
from densepath.annotations.coco_writing import LabelMap
from densepath.annotations.labels import label_orientation, label_size, read_objects
from densepath.core.errors import UserError, refuse
from densepath.core.spelling import composed
from densepath.datasets.exclusion import Exclusion
from densepath.datasets.samples import Sample
from densepath.sources.corrupt import CorruptImage
from densepath.sources.decode import read_header
from densepath.sources.tiff import turn

_JPEG = (".jpg", ".jpeg", ".JPG", ".JPEG")


def pair_up(
    images: Iterable[Path],
    maps: Iterable[Path],
    suffix: str = "",
    labelled_only: bool = False,
    folders: tuple[Path, Path] | None = None,
    exclude: Exclusion | None = None,
    orientation: Orientation | None = None,
    split: str | None = None,
) -> list[Sample]:
    """Pair images and label maps of the same name, in the order of the numbers in their names.

    Each label is one instance. The headers of both files are compared; the maps are read when the data set is written.

    Args:
        images: image files; hidden ones are left out.
        maps: label maps.
        suffix: what follows the image's name in the name of its label map.
        labelled_only: whether to leave out images without a label map instead of refusing them.
        folders: the folders of the images and of the maps: files in subfolders are paired by their paths from there.
            Without them, files are paired by their names only.
        exclude: images to leave out, with their label maps, by the path below the folder of the images.
        orientation: whether files with an orientation tag belong together as "stored" or as "viewed", turned by their
            tags; None refuses an image and a label map with different tags.
        split: the split of the samples.

    Raises:
        UserError: an image or a label map has no counterpart, several have the same name, they differ in size or
            orientation, or a header cannot be read.
    """
    image_root, map_root = folders or (None, None)
    image_of = _by_name(images, "images", root=image_root)
    map_of = _by_name(maps, "label maps", suffix, map_root)
    if exclude is not None and image_of:
        root = image_root or Path(*_shared_parts(list(image_of.values())))
        left_out = {name for name, path in image_of.items() if exclude(os.path.relpath(path, root))}
        image_of, map_of = ({n: p for n, p in found.items() if n not in left_out} for found in (image_of, map_of))
    remedy = "give each image one label map with the same name"
    if not labelled_only:
        missing = sorted(image_of.keys() - map_of.keys(), key=_by_number)
        hint = _unusable(f"{missing[0]}{suffix}", map_of.values(), map_root) if missing and map_root else ""
        refuse(missing, "images without a label map" + f" *{suffix}" * bool(suffix), hint or remedy)
    refuse(sorted(map_of.keys() - image_of.keys(), key=_by_number), "label maps without an image", remedy)
    pairs = [(name, image_of[name], map_of[name]) for name in sorted(map_of, key=_by_number)]
    compared = [_compare(image, labels, orientation) for _, image, labels in pairs]
    refuse(
        [fault for fault, _ in compared if fault],
        "images and label maps with different orientation tags",
        "save both without the tag, or say with --orientation how they belong together",
    )
    refuse([fault for _, fault in compared if fault], "images and label maps of different sizes", "they must be equal")
    return [Sample(name, image, partial(_labels, labels, orientation), split=split) for name, image, labels in pairs]


def _unusable(name: str, maps: Iterable[Path], root: Path) -> str:
    """Why the file that looks like the label map of a name is not read as such; empty if none does."""
    for path in maps:
        found = str(path.relative_to(root).with_suffix(""))
        if found != name and found.lower() == name.lower():
            return f"the name of {path} differs in capital and small letters; rename it"
    for ending in _JPEG:
        if (path := root / f"{name}{ending}").is_file():
            return f"{path} is a JPEG, which changes numbers; save label maps as PNG or TIFF"
    return ""


def _shared_parts(paths: Sequence[Path]) -> tuple[str, ...]:
    """The folder that contains all files."""
    folders = {path.parent for path in paths}
    return min(folders, key=lambda folder: len(folder.parts)).parts


def _by_name(paths: Iterable[Path], what: str, suffix: str = "", root: Path | None = None) -> dict[str, Path]:
    """Files by their names, which are compared in one Unicode normalization: macOS writes another one than Linux."""
    named = []
    for path in paths:
        if not path.name.startswith("."):
            place = path.relative_to(root) if root else Path(path.name)
            name = composed(str(place.with_suffix("")))
            named.append((name[: len(name) - len(suffix)] if name.lower().endswith(suffix.lower()) else name, path))
    counts = Counter(name for name, _ in named)
    refuse([name for name, count in counts.items() if count > 1], f"several {what} with one name", "keep one of each")
    return dict(named)


def _by_number(name: str) -> tuple[str, int]:
    """train_2 before train_10."""
    prefix, digits = re.fullmatch(r"(.*?)([0-9]*)", name, re.DOTALL).groups()  # type: ignore[union-attr]
    return prefix, int(digits or 0)


def _compare(image: Path, labels: Path, orientation: Orientation | None) -> tuple[str, str]:
    """The orientation tags and the sizes of an image and its label map, each if they differ; else empty texts."""
    try:
        header, tag = read_header(image), label_orientation(labels)
        height, width = label_size(labels)
    except CorruptImage as error:
        raise UserError(f"{error}; replace the file") from error
    size = header.height, header.width
    if orientation == "viewed":
        size = header.viewed
        height, width = (width, height) if tag > 4 else (height, width)
    turned = f"{image.name} ({header.orientation}) and {labels.name} ({tag})"
    unequal = f"{image.name} ({size[1]} x {size[0]} px) and {labels.name} ({width} x {height} px)"
    alike = header.orientation == tag or orientation is not None
    return "" if alike else turned, "" if size == (height, width) else unequal


def _labels(path: Path, orientation: Orientation | None) -> LabelMap:
    """A label map in the pixels of the image that is written."""
    try:
        labels = read_objects(path)
        return turn(labels, label_orientation(path)) if orientation == "viewed" else labels
    except CorruptImage as error:
        raise UserError(f"{error}; replace the file") from error
