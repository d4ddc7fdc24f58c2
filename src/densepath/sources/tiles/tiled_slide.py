"""Opening a slide that was tiled."""

from __future__ import annotations

import os
from dataclasses import replace

from densepath.sources.corrupt import CorruptImage
from densepath.sources.slides.open import open_slide
from densepath.sources.slides.resolution import Spacing
from densepath.sources.slides.slide import Slide
from densepath.sources.tiles.identity import identity_of_slide, is_identity
from densepath.sources.tiles.tile_files import SlideTiling

CHANGED = "other contents of the file"


def open_tiled(tiling: SlideTiling) -> Slide:
    """Open a slide with the µm per pixel with which it was tiled.

    Raises:
        CorruptImage: it cannot be read, or is not the one that was tiled.
        UserError: a library that it needs is not installed.
    """
    try:
        slide = open_of_size(tiling.path, tiling.spacing, tiling.extent)
    except CorruptImage as error:
        if os.path.exists(tiling.path):
            raise
        why = "moved or removed since it was tiled; put it back, or run densepath tile again"
        raise CorruptImage(tiling.path, why) from error
    if is_changed(tiling):
        raise CorruptImage(tiling.path, f"not the slide that was tiled: {CHANGED}; run densepath tile again")
    return slide


def is_changed(tiling: SlideTiling) -> bool:
    """Whether a slide's files have other contents than when it was tiled, as far as its tiles know."""
    known, path = list(tiling.identity), tiling.path
    return bool(known) and not is_identity(known, identity_of_slide(path), path)


def open_of_size(path: str, spacing: Spacing, extent: tuple[int, int]) -> Slide:
    """Open a slide with some µm per pixel, if it has the size of the one that was tiled.

    Args:
        path, spacing, extent: those of its :class:`~densepath.sources.tiles.tile_files.SlideTiling`.

    Raises:
        CorruptImage: it cannot be read, or has another size than the one that was tiled.
        UserError: a library that it needs is not installed.
    """
    slide = replace(open_slide(path), given=spacing)
    if slide.size != extent:
        now = f"{slide.size[1]} x {slide.size[0]} px instead of {extent[1]} x {extent[0]}"
        raise CorruptImage(path, f"not the slide that was tiled: {now}; run densepath tile again")
    return slide
