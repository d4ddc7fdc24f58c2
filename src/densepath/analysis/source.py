"""The images of which pictures are drawn."""

from __future__ import annotations

from densepath.core.streams import say
from densepath.sources.image_files import ImageFiles
from densepath.sources.pixel_source import PixelSource
from densepath.sources.summary import summarize


def report_source(images: PixelSource) -> None:
    """Print what the images are."""
    for line in summarize(images, images if isinstance(images, ImageFiles) else None):
        say(f"densepath: {line}")
