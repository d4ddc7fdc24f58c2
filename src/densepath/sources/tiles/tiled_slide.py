"""Opening a slide that was tiled."""

from __future__ import annotations

from dataclasses import replace

from densepath.sources.corrupt import CorruptImage
from densepath.sources.slides.open import open_slide
from densepath.sources.slides.resolution import Spacing
from densepath.sources.slides.slide import Slide


def open_tiled(path: str, spacing: Spacing, extent: tuple[int, int]) -> Slide:
    """Open a slide with the µm per pixel with which it was tiled.

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
