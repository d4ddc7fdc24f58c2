"""Writes samples as a data set for ``detect`` and ``probe``, and prints what it holds."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from densepath.annotations.class_masks import ClassMasks
from densepath.annotations.coco_checks import Orientation
from densepath.annotations.coco_writing import Outlined, write_coco
from densepath.annotations.image_mpp import file_mpp
from densepath.core.errors import UserError, counted
from densepath.core.streams import say, write_line
from densepath.core.system import with_progress
from densepath.datasets.categories import odd_categories
from densepath.datasets.samples import Sample
from densepath.sources.corrupt import CorruptImage
from densepath.sources.decode import read_header, read_image
from densepath.sources.tiff import turn


def write_samples(
    dest: Path,
    splits: Mapping[str, Sequence[Sample]],
    categories: Sequence[str],
    what: str,
    orientation: Orientation | None = None,
    patients: Mapping[str, int] | None = None,
    mpp: float | None = None,
) -> dict[str, int]:
    """Write samples by :func:`~densepath.annotations.coco_writing.write_coco`, and print their numbers.

    Image files are copied; BMP, and images with an orientation tag, are converted to PNG without the tag.

    Args:
        dest: a new folder.
        splits: the samples of each split.
        categories: the names of the categories.
        what: name of an object in the printed lines.
        orientation: with "viewed", images are turned by their tags.
        patients: number of patients of each split, to print.
        mpp: µm per pixel of images that do not have their own, if known.

    Returns:
        The number of images of each split.

    Raises:
        UserError: an image cannot be read, or none has an object.
    """
    tallies: dict[str, Counter[str]] = {split: Counter() for split in splits}
    masks = ClassMasks()
    done = {split: _outlined(samples, orientation, tallies[split], masks) for split, samples in splits.items()}
    counts = write_coco(dest, done, categories, mpp, require_objects=True)
    for split, (images, instances) in counts.items():
        of = f" of {counted(patients[split], 'patient')}" if patients else ""
        crowds, kinds = tallies[split].pop("", 0), tallies[split]
        each = ", ".join(f"{kinds[name]} {name}" for name in categories if kinds[name])
        more = f" ({each})" if len(categories) > 1 and each else ""
        passed = f", {crowds} crowds" if crowds else ""
        write_line(
            f"{split}: {counted(images, 'image')}{of}, {counted(instances - crowds, what)}{more}{passed}", sys.stdout
        )
    total = sum(tallies.values(), Counter[str]())
    for line in odd_categories({name: total[name] for name in categories}):
        say(f"densepath: {line}")
    if warning := masks.warning("the source"):
        say(warning)
    return {split: images for split, (images, _) in counts.items()}


def _outlined(
    samples: Sequence[Sample], orientation: Orientation | None, tally: Counter[str], masks: ClassMasks
) -> Iterator[Outlined]:
    """The samples as they are written; their objects are counted by category, crowds as ""."""
    for sample in with_progress(samples, len(samples), "writing images"):
        try:
            image = sample.pixels() if sample.pixels else _image(sample.image, orientation)
            objects = sample.objects()
        except CorruptImage as error:
            raise UserError(f"{error}; replace the file") from error
        if isinstance(objects, np.ndarray):
            masks.look(objects)
        else:
            tally.update("" if each.get("iscrowd") else each["category"] for each in objects)
        mpp = file_mpp(sample.image) if sample.mpp is None and isinstance(image, np.ndarray) else sample.mpp
        yield Outlined(sample.name, image, objects, sample.patient, str(sample.image), mpp)


def _image(path: Path, orientation: Orientation | None) -> npt.NDArray[Any] | Path:
    """A file to be copied, or the pixels of one that is converted: with its channels and bits."""
    header = read_header(path)
    wide = np.uint16 if header.bits == 16 else np.uint8
    # In any case: a file with a valid header may be truncated.
    pixels = read_image(path, channels=1 if header.grey else 3, dtype=wide)
    if path.suffix.lower() != ".bmp" and header.orientation == 1:
        return path
    pixels = turn(pixels, header.orientation) if orientation == "viewed" else pixels
    return pixels[..., 0] if header.grey else pixels
