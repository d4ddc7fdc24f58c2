"""Sources of images: files decoded when needed, or packed tiles in one block; and which of the two a source becomes."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch

from densepath.core.errors import UserError
from densepath.sources.cache import decode_if_it_fits, decode_to_memory
from densepath.sources.image_files import MAX_SIDE, ImageFiles
from densepath.sources.listing import list_images
from densepath.sources.packed import PackedTiles
from densepath.sources.packing import SUFFIX, open_store, pack

__all__ = ["ImageFiles", "PackedTiles", "check_size", "open_images", "pack"]

Cache = Literal["auto", "ram", "none"]
_KEPT_FREE = 0.5  # share of a GPU's memory that training keeps for itself


def open_images(
    source: str | Path, *, cache: Cache = "auto", device: torch.device | str | None = None, max_side: int = MAX_SIDE
) -> ImageFiles | PackedTiles:
    """Open a source of images for training.

    Args:
        source: folder, text list or glob pattern (see :func:`densepath.sources.listing.list_images`), or a packed
            store.
        cache: ``ram`` decodes all images into memory now; ``none`` reads files and stores as they are needed; ``auto``
            decodes into memory what takes less than a quarter of the available memory, over all processes of this
            machine, and puts decoded images or a store onto ``device`` if that is a GPU and at least half of its memory
            stays free.
        device: where the training runs.
        max_side: images of files whose longer side is larger (pixels) are reduced, so that the memory of a batch is
            bounded.

    Raises:
        UserError: the source is missing, empty or cannot be read, or too many of its images are damaged.
    """
    if cache not in ("auto", "ram", "none"):
        raise UserError(f"unknown cache {cache!r}; choose auto, ram or none")
    images: ImageFiles | PackedTiles
    if str(source).lower().endswith(SUFFIX):
        images = open_store(source)
        if cache == "ram":
            images = images.to("cpu")
    else:
        files = ImageFiles(list_images(source), max_side)
        if cache == "ram":
            images = decode_to_memory(files)
        else:
            images = (decode_if_it_fits(files) if cache == "auto" else None) or files
    if cache == "auto" and device is not None and isinstance(images, PackedTiles) and _fits(images, device):
        images = images.to(device)
    return images


def _fits(images: PackedTiles, device: torch.device | str) -> bool:
    if torch.device(device).type != "cuda":
        return False
    free, total = torch.cuda.mem_get_info(device)
    # Tiles of one size are gathered by one operation; others image by image, which is quicker on the CPU.
    return images.uniform and images.pixels.nbytes <= free - _KEPT_FREE * total


def check_size(images: ImageFiles | PackedTiles, minimum: int) -> None:
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
