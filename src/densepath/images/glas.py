"""GlaS, the colon glands of the MICCAI 2015 contest, as images and COCO JSON."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from densepath.core.errors import UserError
from densepath.core.files import require_new_folder
from densepath.images.coco import Outlined, write_coco
from densepath.images.decode import DamagedImage, read_image, read_size
from densepath.images.files import find_images

_SHOWN = 3  # cases that a message names
_SPLITS = ("train", "test")
Pair = tuple[Path, Path]  # image, instance label map


def convert_glas(source: str | Path, dest: str | Path) -> Path:
    """Make a data set for ``detect`` and ``probe`` out of GlaS: test A and test B together are its test images.

    The instances are the annotation's labels, one by one; images are copied as they are, BMP becomes PNG.

    Args:
        source: a folder that holds ``train_1.bmp`` and ``train_1_anno.bmp``, ``testA_1.bmp`` and so on, as the authors
            ship them; or a folder ``images`` and instance label maps ``*_inst.png`` (8 or 16 bit) beside it, with the
            same names.
        dest: a new folder: train/, test/, annotations/train.json, annotations/test.json.

    Returns:
        ``dest``.

    Raises:
        UserError: images and label maps do not match in name or size, or ``dest`` is not empty.

    Source: Sirinukunwattana et al., "Gland segmentation in colon histology images: the GlaS challenge contest", 2017.
    """
    dest = require_new_folder(dest, "the data set")
    pairs = _find_pairs(Path(source))
    splits = {split: [pair for pair in pairs if pair[0].name.startswith(split)] for split in _SPLITS}
    strange = [image.name for image, _ in pairs if not image.name.startswith(_SPLITS)]
    _refuse(strange, "images of neither split", "name them train_1, testA_1, testB_1 and so on")
    for split, found in splits.items():
        if not found:
            raise UserError(f"{source} holds no {split} image; there must be some whose names begin with {split}")
    unequal = [fault for pair in pairs if (fault := _unequal(*pair))]
    _refuse(unequal, "images and label maps of different size", "they must be equal")
    counts = write_coco(dest, {split: _outlined(found) for split, found in splits.items()})
    for split, (images, instances) in counts.items():
        print(f"{split}: {images} images, {instances} glands")
    return dest


def _find_pairs(source: Path) -> list[Pair]:
    """Images and their label maps, in the order of their numbers."""
    if not source.is_dir():
        raise UserError(f"{source} is not a folder; give the one that holds GlaS")
    if masks := _named(source, "_anno.bmp"):
        suffix = "_anno"
        folders = {mask.parent for mask in masks}
        images = [path for folder in folders for path in folder.glob("*.bmp") if path not in masks]
    elif (source / "images").is_dir() and (masks := _named(source, "_inst.png")):
        suffix = "_inst"
        images = find_images(source / "images")
    else:
        raise UserError(
            f"{source} holds neither train_1.bmp with train_1_anno.bmp and so on, as GlaS is shipped, nor a folder "
            "images with label maps *_inst.png beside it; give the folder that does"
        )
    image_of = {path.stem: path for path in images if not path.name.startswith(".")}
    mask_of = {path.stem.removesuffix(suffix): path for path in masks}
    remedy = "every image needs one label map of its name"
    _refuse(sorted(image_of.keys() - mask_of.keys(), key=_natural), f"images without a label map *{suffix}", remedy)
    _refuse(sorted(mask_of.keys() - image_of.keys(), key=_natural), "label maps without an image", remedy)
    return [(image_of[name], mask_of[name]) for name in sorted(image_of, key=_natural)]


def _named(source: Path, ending: str) -> set[Path]:
    return {path for path in source.rglob(f"*{ending}") if not path.name.startswith(".")}


def _natural(name: str) -> tuple[str, int]:
    """train_2 before train_10."""
    prefix, digits = re.fullmatch(r"(.*?)(\d*)", name).groups()  # type: ignore[union-attr]
    return prefix, int(digits or 0)


def _refuse(cases: list[str], what: str, remedy: str) -> None:
    if cases:
        more = f" and {len(cases) - _SHOWN} more" if len(cases) > _SHOWN else ""
        raise UserError(f"{what}: {', '.join(cases[:_SHOWN])}{more}; {remedy}")


def _unequal(image: Path, mask: Path) -> str:
    """What differs in size, or nothing."""
    try:
        (h, w), (mask_h, mask_w) = read_size(image), read_size(mask)
    except DamagedImage as error:
        raise UserError(f"{error}; replace the file") from error
    return "" if (h, w) == (mask_h, mask_w) else f"{image.name} ({w} x {h} px) and {mask.name} ({mask_w} x {mask_h} px)"


def _outlined(pairs: list[Pair]) -> Iterator[Outlined]:
    for image, mask in pairs:
        try:
            pixels = read_image(image)  # in any case: a file may be cut short behind a sound header
            yield image.stem, pixels if image.suffix.lower() == ".bmp" else image, _read_labels(mask)
        except DamagedImage as error:
            raise UserError(f"{error}; replace the file") from error


def _read_labels(path: Path) -> npt.NDArray[np.int32]:
    """An instance label map (H, W) as its file numbers it; a palette's indices are the labels."""
    try:
        with Image.open(path) as image:
            labels = np.asarray(image)
    except (OSError, SyntaxError, ValueError) as error:
        raise DamagedImage(str(path), f"cannot be decoded ({error})") from error
    if labels.ndim != 2:
        raise UserError(f"{path} is a color image, not a label map; give 8- or 16-bit label maps with one channel")
    return labels.astype(np.int32)
