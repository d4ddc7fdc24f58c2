"""Sources whose pixels are decoded when they are needed: image files, and tiles of slides."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from densepath.core.errors import UserError
from densepath.sources.image_files import MAX_SIDE, ImageFiles
from densepath.sources.listing import Passed, list_images
from densepath.sources.slides.find import find_slides
from densepath.sources.slides.tiff_slide import open_tiff
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
        UserError: the source is missing or empty, or holds whole slides.
    """
    if is_tile_folder(source):
        return read_tiles(source, exclude)
    passed = Passed()
    try:
        paths = list_images(source, exclude, passed, runs=False)
    except UserError:
        if _has_slides(source, exclude):
            raise _whole_slides(source) from None
        raise
    if _is_pyramid(paths[0]):
        raise _whole_slides(source)
    return ImageFiles(paths, max_side, passed)


def _has_slides(source: str | Path, exclude: Sequence[str]) -> bool:
    try:
        return bool(find_slides(source, exclude))
    except UserError:
        return False


def _is_pyramid(path: str) -> bool:
    """Whether a file is a slide in a TIFF: an image of several resolutions in tiles."""
    if not path.lower().endswith((".tif", ".tiff")):
        return False
    try:
        slide = open_tiff(path)
    except Exception:  # tifffile raises nearly any type on corrupt bytes; who reads the image says what is wrong
        return False
    return slide is not None and len(slide.levels) > 1


def _whole_slides(source: str | Path) -> UserError:
    return UserError(
        f"{source} holds whole slides; cut them into tiles with `densepath tile --data {source} --out T` and give T, "
        "or let pretrain do so with --mpp, e.g. --mpp 0.5"
    )
