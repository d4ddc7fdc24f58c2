"""Sources whose pixels are decoded when they are needed: image files, and tiles of slides."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from densepath.core.errors import UserError
from densepath.core.keywords import quoted
from densepath.sources.image_files import MAX_SIDE, ImageFiles
from densepath.sources.listing import Passed, list_images, walk
from densepath.sources.slides.find import holds_slides
from densepath.sources.tiles.slide_tiles import SlideTiles, read_tiles
from densepath.sources.tiles.tile_files import is_tile_folder
from densepath.sources.volumes import metaimage, nifti


def find_unpacked(source: str | Path, max_side: int = MAX_SIDE, exclude: Sequence[str] = ()) -> ImageFiles | SlideTiles:
    """Find the images of a source without reading pixels.

    Args:
        source: folder, text list or glob pattern (see :func:`densepath.sources.listing.list_images`), or a folder of
            tiles that ``densepath tile`` wrote.
        max_side: images in files whose longer side is larger (pixels) are reduced; tiles of slides are not.
        exclude: patterns of files or slides to leave out.

    Raises:
        UserError: the source is missing or empty, or holds whole slides, or ``max_side`` is not positive, or it is
            given and smaller than the tiles.
    """
    if max_side < 1:
        raise UserError(f"max_side is {max_side}; give the longest side of an image in pixels, such as {MAX_SIDE}")
    if is_tile_folder(source):
        tiles = read_tiles(source, exclude)
        if tiles.size > max_side != MAX_SIDE:
            raise UserError(
                f"max_side is {max_side}, and tiles are not reduced: those of {source} have {tiles.size} px; write "
                "smaller ones by densepath tile with --size"
            )
        return tiles
    passed = Passed()
    try:
        paths = list_images(source, exclude, passed, runs=False)
    except UserError:
        if holds_slides(source, exclude):
            raise _whole_slides(source) from None
        if Path(source).is_dir() and walk(source, (*nifti.SUFFIXES, *metaimage.SUFFIXES)):
            raise UserError(
                f"{source} holds volumes; write them to a store with `densepath data volumes {quoted(source)} S` and "
                "give S"
            ) from None
        raise
    if holds_slides(paths[0]):  # not all of them: a source of images can have millions
        raise _whole_slides(source)
    return ImageFiles(paths, max_side, passed)


def _whole_slides(source: str | Path) -> UserError:
    return UserError(
        f"{source} holds whole slides; cut them into tiles with `densepath tile --data {quoted(source)} --out T` and "
        "give T, or let pretrain do so with --mpp, e.g. --mpp 0.5"
    )
