"""Converts CRAG, the colorectal adenocarcinoma glands of the MILD-Net paper, to images and COCO JSON."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from densepath.annotations.coco_checks import Orientation
from densepath.core.errors import UserError
from densepath.core.files import require_new_folder
from densepath.core.single_values import take_single_values
from densepath.datasets.exclusion import Exclusion
from densepath.datasets.pairing import pair_up
from densepath.datasets.published import CRAG
from densepath.datasets.samples import Sample, with_patients
from densepath.datasets.splitting import Splitting, split_samples
from densepath.datasets.writing import write_samples
from densepath.sources.listing import find_images

_SPLITS = {"train": ("train",), "test": ("valid", "test")}  # our split: its names in versions of the data set
_IMAGES, _ANNOTATIONS = ("images",), ("annotation", "annotations")


@take_single_values
def convert_crag(
    source: str | Path, dest: str | Path, exclude: Sequence[str] = (), orientation: Orientation | None = None
) -> Path:
    """Convert CRAG to a data set for ``detect`` and ``probe``; its validation images are the test images.

    Each label of an annotation is an instance; images are copied unchanged. As published
    (https://warwick.ac.uk/fac/cross_fac/tia/data/mildnet/, publications must cite the MILD-Net paper): 173 training and
    40 validation images of 38 slides; what differs is reported.

    Args:
        source: the published folder, or its parent: ``train/Images/train_1.png`` with the instance label map
            ``train/Annotation/train_1.png`` (or ``.mat``) and so on, ``valid/Images``, ``valid/Annotation``.
        dest: a new folder: train/, test/, annotations/train.json, annotations/test.json, manifest.csv.
        exclude: patterns of image files to leave out: ``*`` and ``?`` in a path below their folder, or a name.
        orientation: for an image and a label map with different orientation tags: whether they belong together as
            "stored", or as "viewed", turned by their tags. Without it they are refused.

    Returns:
        ``dest``.

    Raises:
        UserError: images and label maps do not match in name or size, or ``dest`` is not empty.

    Source: Graham et al., "MILD-Net: minimal information loss dilated network for gland instance segmentation in colon
    histology images", 2019.
    """
    dest, source = require_new_folder(dest, "the data set", sources=(source,)), Path(source)
    if not source.is_dir():
        raise UserError(f"{source} is not a folder; give the one that holds CRAG")
    for root in (source, *sorted(path for path in source.iterdir() if path.is_dir())):
        folders = {split: [path for path in _named(root, names) if _is_split(path)] for split, names in _SPLITS.items()}
        if all(folders.values()):
            excluded = Exclusion(exclude)
            samples = [
                sample for split, found in folders.items() for sample in _pairs(found[0], split, excluded, orientation)
            ]
            excluded.report(source)
            splits, patients = split_samples(with_patients(samples, root), Splitting(), source)
            CRAG.report(write_samples(dest, splits, ["gland"], "gland", orientation, patients, CRAG.mpp))
            return dest
    raise UserError(
        f"{source} does not hold train/Images with train/Annotation and valid/Images with valid/Annotation, as CRAG is "
        "published; give the folder that does"
    )


def _named(folder: Path, names: tuple[str, ...]) -> list[Path]:
    """The folders in a folder that have one of some names, in capital or small letters, in the order of the names."""
    inside = sorted(path for path in folder.iterdir() if path.is_dir())
    return [path for name in names for path in inside if path.name.lower() == name]


def _is_split(folder: Path) -> bool:
    return bool(_named(folder, _IMAGES) and _named(folder, _ANNOTATIONS))


def _pairs(folder: Path, split: str, exclude: Exclusion, orientation: Orientation | None) -> list[Sample]:
    """The pairs of one split; if label maps exist in both formats, the PNG files are used."""
    annotations = [path for path in _named(folder, _ANNOTATIONS)[0].iterdir() if not path.name.startswith(".")]
    kinds = ([path for path in annotations if path.suffix.lower() == kind] for kind in (".png", ".mat"))
    images, maps = find_images(_named(folder, _IMAGES)[0]), next(filter(None, kinds), [])
    return pair_up(images, maps, exclude=exclude, orientation=orientation, split=split)
