"""A data set as a table: each image with its objects, its patient, and the split that its source gives it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from densepath.annotations.coco_writing import Objects
from densepath.annotations.patients import MANIFEST, patients_of
from densepath.core.errors import counted
from densepath.core.output_names import names_below
from densepath.core.paths import AnyPath
from densepath.core.streams import say
from densepath.sources.slides.tile_codecs import Pixels

K = TypeVar("K")


@dataclass(frozen=True)
class Sample:
    """An image with its objects.

    Args:
        name: its path in the folder of its split, without suffix.
        image: the file.
        objects: reads its objects, in the pixels of the image that is written.
        patient: the patient, if known.
        split: "train", "val" or "test" if the source says so.
        mpp: µm per pixel, if the source says it.
        pixels: reads its pixels, if the image is only a part of the file; None for the whole file.
        slide: the name of the slide that it is a part of; all images of a slide are in one split.
    """

    name: str
    image: Path
    objects: Callable[[], Objects]
    patient: str | None = None
    split: str | None = None
    mpp: float | None = None
    pixels: Callable[[], Pixels] | None = None
    slide: str | None = None


def without_repeats(objects: Mapping[K, list[dict[str, Any]]], source: str | Path) -> dict[K, list[dict[str, Any]]]:
    """The objects of each image, once each; the number of others is printed.

    Objects are the same if they have one category and the same pixels, or without an outline the same box.

    Args:
        objects: of each image, as annotations of COCO with outlines as run lengths.
        source: where they are from, for the message.
    """
    kept: dict[K, list[dict[str, Any]]] = {}
    repeated = 0
    for image, listed in objects.items():
        first: dict[Hashable, dict[str, Any]] = {}
        for annotation in listed:
            repeated += first.setdefault(_identity(annotation), annotation) is not annotation
        kept[image] = list(first.values())
    if repeated:
        what = counted(repeated, "repeated object")
        say(f"densepath: {source}: {what} left out, with the image, category and outline of another one")
    return kept


def _identity(annotation: Mapping[str, Any]) -> Hashable:
    outline = annotation["segmentation"]
    return annotation["category"], annotation["iscrowd"], outline["counts"] if outline else tuple(annotation["bbox"])


def with_patients(
    samples: Iterable[Sample], source: str | Path, table: str = MANIFEST, images: AnyPath | None = None
) -> list[Sample]:
    """Add the patients that a table names, see :func:`~densepath.annotations.patients.patients_of`."""
    samples = list(samples)
    known = patients_of(source, [str(sample.image) for sample in samples], table, images)
    return [replace(sample, patient=sample.patient or known.get(str(sample.image))) for sample in samples]


def named_in_splits(samples: Sequence[Sample], listed: bool) -> list[Sample]:
    """The samples with their paths below the folder that all images of their split share, as their names.

    Args:
        samples: the samples. Those without a split may become training images.
        listed: whether a table gives the splits, which may put images of several folders into one: names are then
            those below the folder that all images share.
    """
    splits = ["" if listed else sample.split or "train" for sample in samples]
    names: dict[Path, str] = {}
    for split in dict.fromkeys(splits):
        images = [sample.image for sample, own in zip(samples, splits, strict=True) if own == split]
        names |= zip(images, stems_below(images), strict=True)
    return [replace(sample, name=names[sample.image]) for sample in samples]


def stems_below(images: Sequence[Path]) -> list[str]:
    """The paths of images below the folder that all of them share, without suffix."""
    return [str(Path(name).with_suffix("")) for name in names_below(map(str, images))]
