"""Pictures of the predictions of a method for the same few images, at intervals of its run."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import torch

from densepath.methods.base import Method, Reconstruction
from densepath.nets.preserve_mode import preserve_mode
from densepath.runs.closing import draw_safely
from densepath.sources.batch import ImageBatch
from densepath.sources.loader import DrawViews, ImageBatches
from densepath.sources.pixel_source import PixelSource, PixelSpec
from densepath.views.maker import ViewMaker

PICTURES = "pictures"  # in a run folder
_COUNT = 8

Draw = Callable[[Reconstruction, Path, PixelSpec], Path]


def first_images(images: PixelSource, count: int, seed: int, draw: DrawViews | None = None) -> ImageBatch:
    """A batch of the first images, in the shuffled order of a seed; all of them if there are fewer.

    Args:
        images: the source.
        count: of the images.
        seed: of their order.
        draw: draws their views, if only the boxes of these are needed.
    """
    return next(iter(ImageBatches(images, batch_size=min(count, len(images)), seed=seed, max_steps=1, draw=draw)))


class ReconstructionImages:
    """Draws the predictions of a method for a few images of its source, always with the same views and masks.

    Args:
        method: a method that predicts pixels; its training mode is restored.
        images: the source.
        views: makes the method's views.
        draw: writes a prediction to a PNG file, given the specification of the pixels.
        out: the run folder.
    """

    def __init__(self, method: Method, images: PixelSource, views: ViewMaker, draw: Draw, out: Path) -> None:
        self.method, self.images, self.make_views = method, images, views
        self.draw, self.out = draw, out

    @cached_property
    def _batch(self) -> ImageBatch:
        return first_images(self.images, _COUNT, self.make_views.seed, self.make_views.draw)

    @torch.no_grad()
    def __call__(self, step: int) -> list[Path]:
        """Draw the predictions after ``step`` optimizer steps; returns the file, if it could be written."""
        device = next(self.method.parameters()).device
        with preserve_mode(self.method):
            made = self.method.eval().reconstruct(self.make_views(self._batch.to(device)))
        path = self.out / PICTURES / f"reconstruction_{step:07d}.png"
        return [path] if draw_safely(lambda: self.draw(made, path, self.make_views.spec)) else []
