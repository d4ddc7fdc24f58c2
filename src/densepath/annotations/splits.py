"""Checks of training and test images together: objects, categories, identical images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from itertools import chain

import numpy as np

from densepath.annotations.coco import CocoImages
from densepath.core.digests import identical_files
from densepath.core.errors import UserError, counted, first_few
from densepath.core.output_names import names_below
from densepath.core.spacing import evenly_spaced
from densepath.core.streams import say
from densepath.sources.conversion import highest_of_bits
from densepath.sources.corrupt import CorruptImage
from densepath.sources.decode import read_image
from densepath.sources.image_files import ImageFiles
from densepath.sources.listing import SUFFIXES, Passed, list_images
from densepath.sources.other_bits import seen_as, warn_of_mixed_bits
from densepath.sources.pixel_source import PixelSpec
from densepath.sources.summary import size_range

_SAMPLE = 32  # images that are decoded


def check_splits(train: CocoImages, test: CocoImages) -> list[str]:
    """Check that both splits have objects, and match the categories of the test images by name.

    Returns:
        Their numbers of images and objects, and a warning for test images that are also training images.

    Raises:
        UserError: a split has no objects, or the categories differ.
    """
    check_objects(train)
    match_categories(test, train.category_names, str(train.annotations))
    check_objects(test)
    lines = [f"{describe(train, 'training')}, {describe(test, 'test')}"]
    if same := identical_images(train, test):
        lines.append(
            f"warning: {len(same)} of {len(test)} test images are also training images, so scores are too high: "
            f"{first_few(same)}"
        )
    return lines


def fit_window(train: CocoImages, *others: CocoImages) -> PixelSpec:
    """Read 16-bit images that use fewer bits, as 12-bit cameras write them, with a window of these bits.

    Only warns of such images, also those of the other splits, if images of 8 bits are among a sample of the training
    images. A specification with a window of its own keeps it, unless :func:`~densepath.sources.other_bits.seen_as`
    finds that the images have more bits.

    Returns:
        The specification with which all of them are read.
    """
    spec, paths = train.spec, [images.paths() for images in (train, *others)]
    sample, *rest = ([each[place] for place in evenly_spaced(_SAMPLE, len(each))] for each in paths)
    files = ImageFiles([*sample, *chain.from_iterable(rest)])
    if any(header.bits < 16 for place, header in files.headers.items() if place < len(sample)):
        warn_of_mixed_bits(files, spec)
        return spec
    if spec.window != PixelSpec().window:
        return _read_with(seen_as(spec, ImageFiles(paths[0])), train, *others)
    try:
        highest = max(int(read_image(path, channels=spec.channels, dtype=np.uint16).max()) for path in sample)
    except CorruptImage as error:
        raise UserError(f"{error}; replace the file or take it out of {train.annotations}") from error
    high = highest_of_bits(highest)
    if high < 2**16 - 1:
        spec = _read_with(spec.override(window=(0, high)), train, *others)
        say(f"densepath: the images have 16 bits but values up to {highest} only; the window is 0 to {high}")
    return spec


def _read_with(spec: PixelSpec, *splits: CocoImages) -> PixelSpec:
    for images in splits:
        images.spec = spec
    return spec


def summarize_split(images: CocoImages, what: str) -> str:
    """What is read, in a line: number of images, folders and sizes, and what else lies in their folder."""
    listed = images.coco_ground_truth()["images"]
    folders = len({os.path.dirname(image["file_name"]) for image in listed})
    sides = [image[side] for image in listed for side in ("height", "width")]
    parts = [f"{len(listed)} {what} images in {counted(folders, 'folder')}", size_range(min(sides), max(sides))]
    line = ", ".join([*parts, "kept in memory" if images.cached else "read each time"])
    passed, others = Passed(), 0
    suffixes = {*SUFFIXES, *(os.path.splitext(image["file_name"])[1].lower() for image in listed)} - {""}
    with suppress(UserError):  # the JSON may list files elsewhere
        others = len(list_images(images.folder, passed=passed, runs=False, suffixes=tuple(suffixes))) - len(listed)
    unlisted = f"{counted(others, 'image')} not in {images.annotations.name}" if others > 0 else ""
    also = ", ".join(filter(None, (unlisted, passed.describe())))
    return f"{line}; passed over: {also}" if also else line


def say_read(train: CocoImages, test: CocoImages) -> None:
    """Say what is read of both splits."""
    for images, what in ((train, "training"), (test, "test")):
        say(f"densepath: {summarize_split(images, what)}")


def check_objects(images: CocoImages) -> None:
    """Check that there are objects.

    Raises:
        UserError: there are none; it says how many annotations were passed over as crowds.
    """
    if images.objects:
        return
    if not images.crowds:
        raise UserError(f"{images.annotations} outlines no object; outline some objects in its images")
    raise UserError(
        f"{images.annotations} has no object: all of its {images.crowds} annotations are passed over as crowds; set "
        "iscrowd to 0 if they are single objects (CVAT exports masks with iscrowd 1)"
    )


def match_categories(images: CocoImages, names: Sequence[str], whose: str) -> None:
    """Order the categories of images by their names, so that the labels 1, 2, ... mean the same as in training.

    Args:
        images: the images; their ``category_ids`` are changed.
        names: the names of the labels in training.
        whose: where these names come from, for messages.

    Raises:
        UserError: the images have other categories.
    """
    lacking = [name for name in names if name not in images.category_names]
    unknown = [name for name in images.category_names if name not in names]
    if lacking or unknown:
        parts = [f"it lacks {', '.join(lacking)}"] * bool(lacking) + [f"it adds {', '.join(unknown)}"] * bool(unknown)
        raise UserError(
            f"{images.annotations} has other categories than {whose}: {' and '.join(parts)}; give both the same names"
        )
    images.order_categories(names)
    absent = images.absent_categories()
    if absent and images.objects:
        say(f"densepath: {images.annotations} has no object of {', '.join(absent)}; AP is the mean over the others")


def identical_images(train: CocoImages, test: CocoImages) -> list[str]:
    """The test images whose files equal those of training images, by their paths below the folders of both."""
    trained = list(train.paths())
    paths, count = [*trained, *test.paths()], len(trained)
    names = [*names_below(map(str, trained), train.folder), *names_below(map(str, test.paths()), test.folder)]
    known: dict[int, int] = {}  # position of a test image -> of the last training image of the same bytes
    for group in identical_files(paths):
        if own := [position for position in group if position < count]:
            known |= dict.fromkeys((position for position in group if position >= count), own[-1])
    return [f"{names[position]} is {names[known[position]]}" for position in sorted(known)]


def describe(images: CocoImages, what: str) -> str:
    """The numbers of images and objects, and of crowds, which are passed over."""
    crowds = f" ({images.crowds} crowds passed over)" if images.crowds else ""
    return f"{images.objects} objects in {len(images)} {what} images{crowds}"
