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
    """

    name: str
    image: Path
    objects: Callable[[], Objects]
    patient: str | None = None
    split: str | None = None
    mpp: float | None = None
    pixels: Callable[[], Pixels] | None = None


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


def named_in_splits(samples: Sequence[Sample]) -> list[Sample]:
    """The samples with their paths below the folder that all images of their split share."""
    named: list[Sample] = []
    for split in dict.fromkeys(sample.split for sample in samples):
        part = [sample for sample in samples if sample.split == split]
        named += [replace(s, name=name) for s, name in zip(part, stems_below([s.image for s in part]), strict=True)]
    return named


def stems_below(images: Sequence[Path]) -> list[str]:
    """The paths of images below the folder that all of them share, without suffix."""
    return [str(Path(name).with_suffix("")) for name in names_below(map(str, images))]
