"""Converts CRAG, the colorectal adenocarcinoma glands of the MILD-Net paper, to images and COCO JSON."""

from __future__ import annotations

from pathlib import Path

from densepath.annotations.pairs import Pair, pair_up, write_pairs
from densepath.core.errors import UserError
from densepath.core.files import require_new_folder
from densepath.sources.listing import find_images

_SPLITS = {"train": ("train",), "test": ("valid", "test")}  # our split: its names in versions of the data set
_ANNOTATIONS = ("Annotation", "Annotations")


def convert_crag(source: str | Path, dest: str | Path) -> Path:
    """Convert CRAG to a data set for ``detect`` and ``probe``; its validation images are the test images.

    Each label of an annotation is an instance; images are copied unchanged.

    Args:
        source: the published folder, or its parent: ``train/Images/train_1.png`` with the instance label map
            ``train/Annotation/train_1.png`` (or ``.mat``) and so on, ``valid/Images``, ``valid/Annotation``.
        dest: a new folder: train/, test/, annotations/train.json, annotations/test.json.

    Returns:
        ``dest``.

    Raises:
        UserError: images and label maps do not match in name or size, or ``dest`` is not empty.

    Source: Graham et al., "MILD-Net: minimal information loss dilated network for gland instance segmentation in colon
    histology images", 2019.
    """
    dest, source = require_new_folder(dest, "the data set"), Path(source)
    if not source.is_dir():
        raise UserError(f"{source} is not a folder; give the one that holds CRAG")
    for root in (source, *sorted(path for path in source.iterdir() if path.is_dir())):
        folders = {split: [root / name for name in names if _is_split(root / name)] for split, names in _SPLITS.items()}
        if all(folders.values()):
            splits = {split: _pairs(found[0]) for split, found in folders.items()}
            return write_pairs(dest, splits, "gland", "glands")
    raise UserError(
        f"{source} does not hold train/Images with train/Annotation and valid/Images with valid/Annotation, as CRAG is "
        "published; give the folder that does"
    )


def _is_split(folder: Path) -> bool:
    return (folder / "Images").is_dir() and any((folder / name).is_dir() for name in _ANNOTATIONS)


def _pairs(folder: Path) -> list[Pair]:
    """The pairs of one split; if label maps exist in both formats, the PNG files are used."""
    annotations = next(folder / name for name in _ANNOTATIONS if (folder / name).is_dir())
    maps = [*annotations.glob("*.png")] or [*annotations.glob("*.mat")]
    return pair_up(find_images(folder / "Images"), maps)
