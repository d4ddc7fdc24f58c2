"""The images of which pictures are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from densepath.core.streams import say
from densepath.sources.image_files import ImageFiles
from densepath.sources.open import open_images
from densepath.sources.pixel_source import PixelSource
from densepath.sources.summary import summarize


def open_source(data: str | Path, exclude: Sequence[str]) -> PixelSource:
    """Open images without decoding them, and print what they are.

    Raises:
        UserError: as for :func:`densepath.sources.open.open_images`.
    """
    images = open_images(data, cache="none", exclude=exclude)
    for line in summarize(images, images if isinstance(images, ImageFiles) else None):
        say(f"densepath: {line}")
    return images
