"""Images and their instance label maps, paired by name, checked, and written as a data set for detectors."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from densepath.annotations.coco import Outlined, write_coco
from densepath.annotations.labels import label_size, read_labels
from densepath.core.errors import UserError, first_few
from densepath.core.streams import write_line
from densepath.sources.corrupt import CorruptImage
from densepath.sources.decode import read_image, read_size

Pair = tuple[Path, Path]  # image, instance label map


def pair_up(images: Iterable[Path], maps: Iterable[Path], suffix: str = "", labelled_only: bool = False) -> list[Pair]:
    """Pair images and label maps of the same name, in the order of the numbers in their names.

    Args:
        images: image files; hidden ones are left out.
        maps: label maps.
        suffix: what follows the image's name in the name of its label map.
        labelled_only: whether to leave out images without a label map instead of refusing them.

    Raises:
        UserError: an image or a label map has no counterpart, or several have the same name.
    """
    image_of = _by_name(images, "images")
    map_of = _by_name(maps, "label maps", suffix)
    remedy = "give each image one label map with the same name"
    if not labelled_only:
        refuse(sorted(image_of.keys() - map_of.keys(), key=_by_number), f"images without a label map *{suffix}", remedy)
    refuse(sorted(map_of.keys() - image_of.keys(), key=_by_number), "label maps without an image", remedy)
    return [(image_of[name], map_of[name]) for name in sorted(map_of, key=_by_number)]


def write_pairs(dest: Path, splits: Mapping[str, list[Pair]], category: str, plural: str) -> Path:
    """Write splits of pairs by :func:`write_coco`, and print their numbers of images and instances.

    Each label is one instance. Image files are copied; BMP is converted to PNG.

    Raises:
        UserError: an image and its label map differ in size, or a file cannot be read.
    """
    unequal = [fault for pairs in splits.values() for pair in pairs if (fault := _size_mismatch(*pair))]
    refuse(unequal, "images and label maps of different sizes", "they must be equal")
    counts = write_coco(dest, {split: _outlined(pairs) for split, pairs in splits.items()}, category)
    for split, (images, instances) in counts.items():
        write_line(f"{split}: {images} images, {instances} {plural}", sys.stdout)
    return dest


def refuse(cases: list[str], what: str, remedy: str) -> None:
    """Raise a UserError that names the first cases, if there are any."""
    if cases:
        raise UserError(f"{what}: {first_few(cases)}; {remedy}")


def _by_name(paths: Iterable[Path], what: str, suffix: str = "") -> dict[str, Path]:
    named = [(path.stem.removesuffix(suffix), path) for path in paths if not path.name.startswith(".")]
    counts = Counter(name for name, _ in named)
    refuse([name for name, count in counts.items() if count > 1], f"several {what} with one name", "keep one of each")
    return dict(named)


def _by_number(name: str) -> tuple[str, int]:
    """train_2 before train_10."""
    prefix, digits = re.fullmatch(r"(.*?)([0-9]*)", name, re.DOTALL).groups()  # type: ignore[union-attr]
    return prefix, int(digits or 0)


def _size_mismatch(image: Path, labels: Path) -> str:
    """The sizes, if they differ; else an empty text."""
    try:
        (h, w), (map_h, map_w) = read_size(image), label_size(labels)
    except CorruptImage as error:
        raise UserError(f"{error}; replace the file") from error
    return "" if (h, w) == (map_h, map_w) else f"{image.name} ({w} x {h} px) and {labels.name} ({map_w} x {map_h} px)"


def _outlined(pairs: list[Pair]) -> Iterator[Outlined]:
    for image, labels in pairs:
        try:
            pixels = read_image(image)  # in any case: a file with a valid header may be truncated
            yield image.stem, pixels if image.suffix.lower() == ".bmp" else image, read_labels(labels)
        except CorruptImage as error:
            raise UserError(f"{error}; replace the file") from error
