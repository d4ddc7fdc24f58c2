"""The plain views of some images of a source, in batches."""

from __future__ import annotations

from collections.abc import Iterator, Sized

import torch
from torch import Tensor

from densepath.core.random import permute
from densepath.core.system import with_progress
from densepath.sources.batch import ImageBatch
from densepath.sources.corrupt import CorruptLog
from densepath.sources.open import check_size
from densepath.sources.pixel_source import PixelSource, PixelSpec
from densepath.views.declarations import Center
from densepath.views.maker import ViewMaker

_VIEW = "center"


def chosen(images: Sized, count: int, seed: int) -> Tensor:
    """The positions of ``count`` images, chosen at random; of all if there are fewer."""
    return permute(torch.arange(min(count, len(images))), len(images), seed, 0)


def center_views(
    images: PixelSource,
    positions: Tensor,
    spec: PixelSpec,
    view_size: int,
    *,
    device: torch.device,
    batch_size: int = 32,
    share: float = Center.share,
    what: str = "images",
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """The center crops of images that can be read.

    Args:
        images: the source.
        positions: of the images.
        spec: how the network sees pixels.
        view_size: height and width in pixels.
        device: where views are made.
        batch_size: images in a batch.
        share: share of the short side that the crop covers.
        what: is done, for the progress.

    Yields:
        The positions (B,) of images, their views (B, C, view_size, view_size), and the maps (B, 2, 3) from the
        coordinates of a view to those of its image.

    Raises:
        UserError: an image is too small (a side under half of the view), or too many are corrupt.
    """
    check_size(images, view_size // 2)
    make_view = ViewMaker({_VIEW: Center(share)}, view_size, 0, spec)
    corrupt = CorruptLog(len(images), images.corrupt)
    batches = positions.split(batch_size)
    for index in with_progress(batches, len(batches), what):
        gathered = images.gather(index)
        for position, why in gathered.corrupt.items():
            corrupt.add(position, why)
        corrupt.check()
        batch = ImageBatch.of(gathered).to(device)
        view = make_view(batch)[_VIEW]
        yield batch.index.cpu(), view.pixels, view.map
