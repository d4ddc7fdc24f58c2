"""Sources whose pixels are decoded when they are needed: image files, and tiles of slides."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from densepath.sources.image_files import MAX_SIDE, ImageFiles
from densepath.sources.listing import Passed, list_images
from densepath.sources.tiles.slide_tiles import SlideTiles, read_tiles
from densepath.sources.tiles.tile_files import is_tile_folder


def find_unpacked(source: str | Path, max_side: int = MAX_SIDE, exclude: Sequence[str] = ()) -> ImageFiles | SlideTiles:
    """Find the images of a source without reading pixels.

    Args:
        source: folder, text list or glob pattern (see :func:`densepath.sources.listing.list_images`), or a folder of
            tiles that ``densepath tile`` wrote.
        max_side: images in files whose longer side is larger (pixels) are reduced.
        exclude: patterns of files or slides to leave out.

    Raises:
        UserError: the source is missing or empty.
    """
    if is_tile_folder(source):
        return read_tiles(source, exclude)
    passed = Passed()
    return ImageFiles(list_images(source, exclude, passed, runs=False), max_side, passed)
