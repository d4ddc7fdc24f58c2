"""Converts GlaS, the colon glands of the MICCAI 2015 contest, to images and COCO JSON."""

from __future__ import annotations

from pathlib import Path

from densepath.annotations.pairs import Pair, pair_up, refuse, write_pairs
from densepath.core.errors import UserError
from densepath.core.files import require_new_folder
from densepath.sources.listing import SUFFIXES, find_images, walk

_SPLITS = ("train", "test")


def convert_glas(source: str | Path, dest: str | Path) -> Path:
    """Convert GlaS to a data set for ``detect`` and ``probe``; test A and test B together are the test images.

    Each label of an annotation is an instance; images are copied unchanged, BMP becomes PNG.

    Args:
        source: a folder that holds ``train_1.bmp`` and ``train_1_anno.bmp``, ``testA_1.bmp`` and so on, as published
            or converted to another format; or a folder that holds ``images`` and instance label maps ``*_inst.png`` (8
            or 16 bit) with the same names.
        dest: a new folder: train/, test/, annotations/train.json, annotations/test.json.

    Returns:
        ``dest``.

    Raises:
        UserError: images and label maps do not match in name or size, or ``dest`` is not empty.

    Source: Sirinukunwattana et al., "Gland segmentation in colon histology images: the GlaS challenge contest", 2017.
    """
    dest = require_new_folder(dest, "the data set")
    pairs = _find_pairs(Path(source))
    splits = {split: [pair for pair in pairs if pair.name.lower().startswith(split)] for split in _SPLITS}
    strange = [pair.image.name for pair in pairs if not pair.name.lower().startswith(_SPLITS)]
    refuse(strange, "images that belong to no split", "name them train_1, testA_1, testB_1 and so on")
    for split, found in splits.items():
        if not found:
            raise UserError(f"{source} holds no {split} image; add images whose names start with {split}")
    return write_pairs(dest, splits, "gland", "glands")


def _find_pairs(source: Path) -> list[Pair]:
    """Images and their label maps, ordered by their numbers."""
    if not source.is_dir():
        raise UserError(f"{source} is not a folder; give the one that holds GlaS")
    files = [Path(name) for name in walk(source, SUFFIXES)]
    images, masks = source / "images", _ending(files, "_inst")
    if images.is_dir() and masks:
        return pair_up(find_images(images), masks, "_inst")
    masks = _ending(files, "_anno")
    folders = {mask.parent for mask in masks}
    if not masks:
        raise UserError(
            f"{source} holds neither train_1.bmp with train_1_anno.bmp and so on, as GlaS is published, nor a folder "
            "images with label maps *_inst.png; give the folder that does"
        )
    return pair_up([path for path in files if path.parent in folders and path not in set(masks)], masks, "_anno")


def _ending(files: list[Path], suffix: str) -> list[Path]:
    """The files whose names end with a suffix before their format, in capital or small letters."""
    return [path for path in files if path.stem.lower().endswith(suffix)]
