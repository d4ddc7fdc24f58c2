"""Converts GlaS, the colon glands of the MICCAI 2015 contest, to images and COCO JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from densepath.annotations.coco_checks import Orientation
from densepath.core.errors import UserError, refuse
from densepath.core.files import require_new_folder
from densepath.core.single_values import take_single_values
from densepath.datasets.exclusion import Exclusion
from densepath.datasets.pairing import pair_up
from densepath.datasets.published import GLAS
from densepath.datasets.samples import Sample, with_patients
from densepath.datasets.splitting import Splitting, split_samples
from densepath.datasets.writing import write_samples
from densepath.sources.listing import SUFFIXES, find_images, walk

_SPLITS = ("train", "test")
_GRADES = "Grade.csv"  # the published table of patients and grades


@take_single_values
def convert_glas(
    source: str | Path, dest: str | Path, exclude: Sequence[str] = (), orientation: Orientation | None = None
) -> Path:
    """Convert GlaS to a data set for ``detect`` and ``probe``; test A and test B together are the test images.

    Each label of an annotation is an instance; images are copied unchanged, BMP becomes PNG. As published
    (https://glas.grand-challenge.org/Dataset, for research only): 85 training and 80 test images (60 of test A, 20 of
    test B); what differs is reported. The official split is by image: patients have images in both.

    Args:
        source: a folder that holds ``train_1.bmp`` and ``train_1_anno.bmp``, ``testA_1.bmp`` and so on, as published
            or converted to another format; or a folder that holds ``images`` and instance label maps ``*_inst.png`` (8
            or 16 bit) with the same names. Patients are read from Grade.csv, or from a manifest.csv.
        dest: a new folder: train/, test/, annotations/train.json, annotations/test.json, manifest.csv.
        exclude: patterns of image files to leave out: ``*`` and ``?`` in a path below their folder, or a name.
        orientation: for an image and a label map with different orientation tags: whether they belong together as
            "stored", or as "viewed", turned by their tags. Without it they are refused.

    Returns:
        ``dest``.

    Raises:
        UserError: images and label maps do not match in name or size, or ``dest`` is not empty.

    Source: Sirinukunwattana et al., "Gland segmentation in colon histology images: the GlaS challenge contest", 2017.
    """
    dest = require_new_folder(dest, "the data set", sources=(source,))
    images, masks, suffix = _find(Path(source))
    strange = [path.name for path in images if not path.name.lower().startswith(_SPLITS)]
    refuse(strange, "images that belong to no split", "name them train_1, testA_1, testB_1 and so on")
    excluded = Exclusion(exclude)
    samples: list[Sample] = pair_up(images, masks, suffix, exclude=excluded, orientation=orientation)
    excluded.report(source)
    samples = with_patients(with_patients(samples, source), source, _GRADES)
    samples = [replace(s, split="train" if s.name.lower().startswith("train") else "test") for s in samples]
    for split in _SPLITS:
        if not any(sample.split == split for sample in samples):
            raise UserError(f"{source} holds no {split} image; add images whose names start with {split}")
    splits, patients = split_samples(samples, Splitting(), source)
    GLAS.report(write_samples(dest, splits, ["gland"], "gland", orientation, patients, GLAS.mpp))
    return dest


def _find(source: Path) -> tuple[list[Path], list[Path], str]:
    """Images and label maps, and what follows an image's name in that of its label map."""
    if not source.is_dir():
        raise UserError(f"{source} is not a folder; give the one that holds GlaS")
    files = [Path(name) for name in walk(source, SUFFIXES)]
    images, masks = source / "images", _ending(files, "_inst")
    if images.is_dir() and masks:
        return find_images(images), masks, "_inst"
    masks = _ending(files, "_anno")
    folders, labels = {mask.parent for mask in masks}, set(masks)
    if not masks:
        raise UserError(
            f"{source} holds neither train_1.bmp with train_1_anno.bmp and so on, as GlaS is published, nor a folder "
            "images with label maps *_inst.png; give the folder that does"
        )
    return [path for path in files if path.parent in folders and path not in labels], masks, "_anno"


def _ending(files: list[Path], suffix: str) -> list[Path]:
    """The files whose names end with a suffix before their format, in capital or small letters."""
    return [path for path in files if path.stem.lower().endswith(suffix)]
