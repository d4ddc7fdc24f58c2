"""The images of which pictures are drawn, and what networks make of them."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from densepath.core.errors import UserError
from densepath.core.streams import say
from densepath.sources.image_files import ImageFiles
from densepath.sources.pixel_source import PixelSource
from densepath.sources.summary import summarize


def report_source(images: PixelSource) -> None:
    """Print what the images are."""
    for line in summarize(images, images if isinstance(images, ImageFiles) else None):
        say(f"densepath: {line}")


def planar(images: PixelSource, data: str | Path) -> PixelSource:
    """The images of ``data``. Raises UserError if they are volumes."""
    if images.spec.ndim != 2:
        raise UserError(f"{data} has images of {images.spec.ndim} dimensions; give images of 2 dimensions")
    return images


def check_finite(values: Tensor, what: str) -> None:
    """Raise UserError if numbers that a network gives, called ``what``, are NaN or Inf."""
    if not bool(values.isfinite().all()):
        raise UserError(f"the {what} has numbers that are not finite: the weights are damaged; give others")
