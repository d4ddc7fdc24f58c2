"""Opening a source of images: files decoded when needed, packed tiles in one block, or a store of volumes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch

from densepath.core.errors import UserError
from densepath.core.torch_defaults import torch_defaults
from densepath.sources.cache import decode_if_it_fits, decode_to_memory
from densepath.sources.image_files import MAX_SIDE, ImageFiles
from densepath.sources.packed import PackedTiles
from densepath.sources.packing import NO_EXCLUDE, SUFFIX, open_store
from densepath.sources.pixel_source import PixelSource
from densepath.sources.tiles.slide_tiles import SlideTiles
from densepath.sources.unpacked import find_unpacked
from densepath.sources.volumes.open_store import is_volume_store, open_volumes
from densepath.sources.volumes.store import VolumeStore

Cache = Literal["auto", "ram", "none"]
_KEPT_FREE = 0.5  # share of a GPU's memory that is left to training


@torch_defaults()
def open_images(
    source: str | Path,
    *,
    cache: Cache = "auto",
    device: torch.device | str | None = None,
    max_side: int = MAX_SIDE,
    exclude: Sequence[str] = (),
) -> PixelSource:
    """Open a source of images for training: :func:`find_source` and :func:`cache_images`.

    Args:
        source: folder, text list or glob pattern (see :func:`densepath.sources.listing.list_images`), a packed store,
            a folder of tiles that ``densepath tile`` wrote, or a store of volumes.
        cache, device: as for :func:`cache_images`.
        max_side: images in files whose longer side is larger (pixels) are reduced, which bounds the memory of a batch.
        exclude: patterns of files to leave out, see :func:`densepath.sources.listing.list_images`.

    Raises:
        UserError: the source is missing, empty or cannot be read, or too many of its images are corrupt.
    """
    return cache_images(find_source(source, max_side, exclude), cache, device)


def find_source(source: str | Path, max_side: int = MAX_SIDE, exclude: Sequence[str] = ()) -> PixelSource:
    """Find the images of a source without reading pixels. Arguments and errors as for :func:`open_images`."""
    if str(source).lower().endswith(SUFFIX):
        if exclude:
            raise UserError(NO_EXCLUDE)
        return open_store(source)
    if is_volume_store(source):
        return open_volumes(source, exclude)
    return find_unpacked(source, max_side, exclude)


def cache_images(
    images: PixelSource,
    cache: Cache = "auto",
    device: torch.device | str | None = None,
    *,
    all_of_them: bool = False,
) -> PixelSource:
    """Decode images into memory where that is useful.

    Args:
        images: the source.
        cache: ``ram`` decodes all images into memory now; ``none`` reads files and stores on demand; ``auto`` decodes
            images into memory if they take less than a quarter of the available memory, over all processes of this
            machine, and copies decoded images or a store to ``device`` if that is a GPU and at least half of its memory
            stays free.
        device: where the training runs.
        all_of_them: refuse images that a later attempt may read, instead of counting them among the corrupt ones.

    Raises:
        UserError: the images cannot be read, or too many of them are corrupt.
    """
    if cache not in ("auto", "ram", "none"):
        raise UserError(f"unknown cache {cache!r}; choose auto, ram or none")
    if isinstance(images, SlideTiles) and cache == "ram":
        raise UserError("--cache ram is for images in files; pack tiles of slides with `densepath data pack` instead")
    if isinstance(images, VolumeStore) and cache == "ram":
        raise UserError("--cache ram is for images in files; a store of volumes needs no decoding: leave it out")
    if isinstance(images, ImageFiles):
        if cache == "ram":
            images = decode_to_memory(images, all_of_them)
        else:
            images = (decode_if_it_fits(images, all_of_them) if cache == "auto" else None) or images
    elif cache == "ram" and isinstance(images, PackedTiles):
        images = images.to("cpu")
    if cache == "auto" and device is not None and isinstance(images, PackedTiles) and _fits(images, device):
        images = images.to(device)
    return images


def _fits(images: PackedTiles, device: torch.device | str) -> bool:
    if torch.device(device).type != "cuda":
        return False
    free, total = torch.cuda.mem_get_info(device)
    # Tiles of one size are gathered by one operation; others one by one, which is faster on the CPU.
    return images.uniform and images.pixels.nbytes <= free - _KEPT_FREE * total


def check_size(images: PixelSource, minimum: int) -> None:
    """Check that no side of an image is shorter than ``minimum`` pixels (all images of a store, a sample of files).

    Raises:
        UserError: an image is too small, or no image can be read.
    """
    position, side = images.smallest()
    if side < minimum:
        raise UserError(
            f"{images.names(position)} has a side of {side} px, and {minimum} px are needed; "
            "take out the small images or ask for smaller views"
        )
