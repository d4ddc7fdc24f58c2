"""Images of other bits than a network's training images: which of their values it takes for dark and bright."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from densepath.core.errors import first_few
from densepath.core.streams import say
from densepath.sources.image_files import ImageFiles
from densepath.sources.pixel_source import PixelSource, PixelSpec, bits_of


def seen_as(trained: PixelSpec, images: PixelSource) -> PixelSpec:
    """How a trained network sees images: with their window and bits, if its training images had other bits."""
    bits = bits_of(images)
    return trained if bits in (None, trained.file_bits) else trained.override(window=images.spec.window, bits=bits)


def prediction_spec(trained: PixelSpec, images: PixelSource, converted: bool = False) -> PixelSpec:
    """As :func:`seen_as`, for predictions: another window is reported, and so are images that no one window fits.

    Args:
        trained: of the network.
        images: that it will see.
        converted: whether pixels are read with the bits of the specification. Then images that use all of their bits
            are seen as those of the training, and need no other one.
    """
    spec = seen_as(trained, images)
    if isinstance(images, ImageFiles) and (dim := images.dim_among_bright()):
        lost = "these are nearly black" if _is_full(spec) else "the others are nearly white"
        say(
            f"densepath: warning: {first_few([Path(name).name for name in dim])} "
            f"{'uses' if len(dim) == 1 else 'use'} only some of 16 bits, and other images have 8; one window is for "
            f"all, in which {lost}: put them into a folder of their own"
        )
    if spec is trained or (_is_full(spec) and _is_full(trained)):
        return trained if converted else spec
    low, high = spec.window
    say(
        f"densepath: the images have {spec.file_bits} bits, and the training images were read with "
        f"{trained.file_bits} and the window {trained.window[0]:g} to {trained.window[1]:g}; the window of these is "
        f"{low:g} to {high:g}"
    )
    return spec


def _is_full(spec: PixelSpec) -> bool:
    return spec.window == (0, np.iinfo(spec.image_dtype).max)
