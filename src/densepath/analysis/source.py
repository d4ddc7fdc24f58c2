"""The images of which pictures are drawn, and what networks make of them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from densepath.core.errors import UserError
from densepath.core.streams import say
from densepath.nets.backbones import Backbone
from densepath.nets.weights.pretrained import pretrained_backbone
from densepath.sources.image_files import ImageFiles
from densepath.sources.other_bits import seen_as
from densepath.sources.pixel_source import PixelSource, PixelSpec
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


def network_for(
    images: PixelSource, weights: str, backbone: str | nn.Module | None, seed: int
) -> tuple[Backbone, PixelSpec, int | None]:
    """The network of some weights, how it sees some images, and the size of the views of its training, if known.

    Args:
        images: the images.
        weights, backbone: as for :func:`~densepath.nets.weights.pretrained.pretrained_backbone`.
        seed: of random weights, and of what is drawn from torch's generator afterwards.
    """
    torch.manual_seed(seed)
    network, spec, size, _ = pretrained_backbone(weights, backbone, images.spec)
    return network, seen_as(spec, images), size


def check_finite(values: Tensor, what: str) -> None:
    """Raise UserError if numbers that a network gives, called ``what``, are NaN or Inf."""
    if not bool(values.isfinite().all()):
        raise UserError(f"the {what} has numbers that are not finite: the weights are damaged; give others")
