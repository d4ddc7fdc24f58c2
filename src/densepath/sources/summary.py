"""What is read, in a line, and warnings where it is probably not what was meant."""

from __future__ import annotations

import os

import numpy as np

from densepath.core.errors import counted, first_few
from densepath.core.spacing import evenly_spaced
from densepath.sources.corrupt import CorruptImage
from densepath.sources.image_files import ImageFiles
from densepath.sources.names import AllNames
from densepath.sources.other_bits import mixed_bits
from densepath.sources.packed import PackedTiles
from densepath.sources.pixel_source import PixelSource
from densepath.sources.tiles.slide_tiles import SlideTiles
from densepath.sources.volumes.store import VolumeStore

_VALUES = 64  # different values of a mask or an instance map at most; tissue and X-rays have more
_LOOKED_AT = 32  # images that are decoded
_MANY = 0.1  # share of images
_SMALL = 32  # pixels: the side of a thumbnail at most
_SMALLER = 16  # as many times fewer pixels than the median image a thumbnail has at least


def summarize(images: PixelSource, files: ImageFiles | None = None) -> list[str]:
    """The images of a source: their number, folders and sizes, where they are read from, and what was passed over.

    Args:
        images: the source, as it is read.
        files: the files that it was decoded from, if they were.

    Returns:
        A line, and a line for each warning. Sizes and warnings are those of a sample of the files.
    """
    if isinstance(images, SlideTiles):
        slides = counted(len(images.tilings), "slide")
        return [
            f"{counted(len(images), 'tile')} of {images.size} px at {images.mpp:g} µm/px from {slides}, "
            "read from the slides"
        ]
    if isinstance(images, VolumeStore):
        return [images.describe()]
    folders = len({os.path.dirname(name) for name in AllNames(images)})
    parts = [f"{counted(len(images), 'image')} in {counted(folders, 'folder')}"]
    if files is None and isinstance(images, PackedTiles):
        low, high = int(images.table.min()), int(images.table.max())
        return [", ".join([*parts, size_range(low, high), f"packed in {images.file}"])]
    if files is None or not files.headers:
        return [", ".join(parts)]
    sides = [side for header in files.headers.values() for side in (header.height, header.width)]
    kept = "kept in memory" if isinstance(images, PackedTiles) else "read each time"
    line = ", ".join([*parts, size_range(min(sides), max(sides)), kept]) + files.passed.also()
    reduced = [files.names(position) for position, header in files.headers.items() if header.factor > 1]
    warnings = []
    if reduced:
        warnings.append(
            f"{_share(len(reduced), files)} larger than {files.max_side} px and reduced, e.g. {reduced[0]}; cut them "
            "into tiles to keep their resolution"
        )
    if masks := _masks(files):
        warnings.append(
            f"warning: many images look like masks, with one channel of few values: {first_few(masks)}; leave them out "
            "with --exclude PATTERN"
        )
    if small := _thumbnails(files):
        warnings.append(
            f"warning: many images look like thumbnails, with few pixels: {first_few(small)}; leave them out with "
            "--exclude PATTERN"
        )
    if mixed := mixed_bits(files, images.spec):
        warnings.append(mixed)
    return [line, *warnings]


def size_range(low: int, high: int) -> str:
    """Sizes in pixels."""
    return f"{low} px" if low == high else f"{low}-{high} px"


def _share(count: int, files: ImageFiles) -> str:
    of = len(files.headers)
    return counted(count, "image is", "images are") if of == len(files) else f"{count} of {of} sampled images are"


def _masks(files: ImageFiles) -> list[str]:
    """The names of images that look like masks, if there are many in a sample."""
    suspects = [position for position, header in files.headers.items() if header.grey or header.indexed]
    looked_at = [suspects[place] for place in evenly_spaced(_LOOKED_AT, len(suspects))]
    found = []
    for position in looked_at:
        try:
            pixels = files.read(position)
        except CorruptImage:
            continue
        if len(np.unique(pixels[:, :, 0])) <= _VALUES:
            found.append(files.names(position))
    share = len(suspects) / len(files.headers) * len(found) / max(len(looked_at), 1)
    return found if share > _MANY else []


def _thumbnails(files: ImageFiles) -> list[str]:
    """The names of images that look like thumbnails, or like overviews of a slide, if there are many in a sample."""
    sides = {k: (header.factor * header.height, header.factor * header.width) for k, header in files.headers.items()}
    pixels = {position: height * width for position, (height, width) in sides.items()}
    most = np.median(list(pixels.values())) / _SMALLER
    found = [k for k, area in pixels.items() if area <= most or min(sides[k]) < _SMALL]
    shown = [f"{files.names(k)} ({sides[k][1]} x {sides[k][0]} px)" for k in found]
    return shown if len(found) > _MANY * len(pixels) else []
