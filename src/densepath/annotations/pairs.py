"""Images and their instance label maps, paired by name, checked, and written as a data set for detectors."""

from __future__ import annotations

import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from densepath.annotations.coco_checks import Orientation
from densepath.annotations.coco_writing import Outlined, write_coco
from densepath.annotations.labels import label_orientation, label_size, read_labels
from densepath.core.errors import UserError, first_few
from densepath.core.streams import write_line
from densepath.sources.corrupt import CorruptImage
from densepath.sources.decode import read_header, read_image
from densepath.sources.tiff import turn


class Pair(NamedTuple):
    """An image and its label map.

    Args:
        name: the image's path in its folder, without suffix.
        image, labels: the files.
    """

    name: str
    image: Path
    labels: Path


def pair_up(
    images: Iterable[Path],
    maps: Iterable[Path],
    suffix: str = "",
    labelled_only: bool = False,
    folders: tuple[Path, Path] | None = None,
) -> list[Pair]:
    """Pair images and label maps of the same name, in the order of the numbers in their names.

    Args:
        images: image files; hidden ones are left out.
        maps: label maps.
        suffix: what follows the image's name in the name of its label map.
        labelled_only: whether to leave out images without a label map instead of refusing them.
        folders: the folders of the images and of the maps: files in subfolders are paired by their paths from there.
            Without them, files are paired by their names only.

    Raises:
        UserError: an image or a label map has no counterpart, or several have the same name.
    """
    image_root, map_root = folders or (None, None)
    image_of = _by_name(images, "images", root=image_root)
    map_of = _by_name(maps, "label maps", suffix, map_root)
    remedy = "give each image one label map with the same name"
    if not labelled_only:
        refuse(sorted(image_of.keys() - map_of.keys(), key=_by_number), f"images without a label map *{suffix}", remedy)
    refuse(sorted(map_of.keys() - image_of.keys(), key=_by_number), "label maps without an image", remedy)
    return [Pair(name, image_of[name], map_of[name]) for name in sorted(map_of, key=_by_number)]


def write_pairs(
    dest: Path,
    splits: Mapping[str, list[Pair]],
    category: str,
    plural: str,
    orientation: Orientation | None = None,
    patients: Mapping[str, int] | None = None,
    asks: bool = False,
) -> Path:
    """Write splits of pairs by :func:`write_coco`, and print their numbers of images and instances.

    Each label is one instance. Image files are copied; BMP, and images with an orientation tag, are converted to PNG.

    Args:
        dest: a new folder.
        splits: the pairs of each split.
        category, plural: name of an object, and of several in the printed lines.
        orientation: whether files with an orientation tag belong together as "stored" or as "viewed", turned by their
            tags; None refuses an image and a label map with different tags.
        patients: number of patients of each split, to print.
        asks: whether the verb has the option --orientation.

    Raises:
        UserError: an image and its label map differ in size or orientation, or a file cannot be read.
    """
    compared = [_compare(pair, orientation) for pairs in splits.values() for pair in pairs]
    refuse(
        [fault for fault, _ in compared if fault],
        "images and label maps with different orientation tags",
        "save both without the tag" + (", or say with --orientation how they belong together" if asks else ""),
    )
    refuse([fault for _, fault in compared if fault], "images and label maps of different sizes", "they must be equal")
    counts = write_coco(dest, {split: _outlined(pairs, orientation) for split, pairs in splits.items()}, category)
    for split, (images, instances) in counts.items():
        of = f" of {patients[split]} patients" if patients else ""
        write_line(f"{split}: {images} images{of}, {instances} {plural}", sys.stdout)
    return dest


def refuse(cases: list[str], what: str, remedy: str) -> None:
    """Raise a UserError that names the first cases, if there are any."""
    if cases:
        raise UserError(f"{what}: {first_few(cases)}; {remedy}")


def _by_name(paths: Iterable[Path], what: str, suffix: str = "", root: Path | None = None) -> dict[str, Path]:
    """Files by their names, which are compared in one Unicode normalization: macOS writes another one than Linux."""
    named = []
    for path in paths:
        if not path.name.startswith("."):
            place = path.relative_to(root) if root else Path(path.name)
            name = unicodedata.normalize("NFC", str(place.with_suffix("")))
            named.append((name[: len(name) - len(suffix)] if name.lower().endswith(suffix.lower()) else name, path))
    counts = Counter(name for name, _ in named)
    refuse([name for name, count in counts.items() if count > 1], f"several {what} with one name", "keep one of each")
    return dict(named)


def _by_number(name: str) -> tuple[str, int]:
    """train_2 before train_10."""
    prefix, digits = re.fullmatch(r"(.*?)([0-9]*)", name, re.DOTALL).groups()  # type: ignore[union-attr]
    return prefix, int(digits or 0)


def _compare(pair: Pair, orientation: Orientation | None) -> tuple[str, str]:
    """The orientation tags and the sizes of a pair, each if they differ; else empty texts."""
    try:
        header, tag = read_header(pair.image), label_orientation(pair.labels)
        height, width = label_size(pair.labels)
    except CorruptImage as error:
        raise UserError(f"{error}; replace the file") from error
    size = header.height, header.width
    if orientation == "viewed":
        size = header.viewed
        height, width = (width, height) if tag > 4 else (height, width)
    turned = f"{pair.image.name} ({header.orientation}) and {pair.labels.name} ({tag})"
    unequal = f"{pair.image.name} ({size[1]} x {size[0]} px) and {pair.labels.name} ({width} x {height} px)"
    alike = header.orientation == tag or orientation is not None
    return "" if alike else turned, "" if size == (height, width) else unequal


def _outlined(pairs: list[Pair], orientation: Orientation | None) -> Iterator[Outlined]:
    for name, image, labels in pairs:
        try:
            pixels = read_image(image)  # in any case: a file with a valid header may be truncated
            numbers, tag = read_labels(labels), read_header(image).orientation
            if orientation == "viewed":
                pixels, numbers = turn(pixels, tag), turn(numbers, label_orientation(labels))
            yield name, pixels if image.suffix.lower() == ".bmp" or tag != 1 else image, numbers
        except CorruptImage as error:
            raise UserError(f"{error}; replace the file") from error
