"""Views of whole batches, made where the images lie."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from densepath.core.affine import union
from densepath.core.random import uniform
from densepath.core.resampling import resample
from densepath.images.batch import ImageBatch
from densepath.views.appearance import apply_appearance
from densepath.views.augment import Augment, Union
from densepath.views.geometry import random_maps
from densepath.views.view import Batch, View

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class ViewMaker:
    """Makes the views that a method declares.

    Args:
        views: name -> declaration. A :class:`Union` stands after the views that it covers.
        size: the views' height and width in pixels.
        seed: the run's seed. A view is a function of (seed, epoch, image, place of the view among the names).
        mean, std: normalization, for colors in [0, 1].
        memory_format: of the pixels, as the networks like them.
    """

    def __init__(
        self,
        views: Mapping[str, Augment | Union],
        size: int,
        seed: int,
        mean: tuple[float, float, float] = IMAGENET_MEAN,
        std: tuple[float, float, float] = IMAGENET_STD,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> None:
        self.views = dict(views)
        self.size = size
        self.seed = seed
        self.mean = mean
        self.std = std
        self.memory_format = memory_format

    @torch.no_grad()
    def __call__(self, images: ImageBatch) -> Batch:
        index, sizes = images.index, images.sizes
        pixels = images.pixels.permute(0, 3, 1, 2).to(torch.float32)
        views: dict[str, View] = {}
        for number, (name, view) in enumerate(self.views.items()):
            if isinstance(view, Union):
                first, second = view.of
                maps = union(views[first].map, views[second].map)
                colors = self._crop(pixels, maps, sizes, view)
            else:
                draw = partial(uniform, self.seed, int(images.epoch), index, number)
                maps = random_maps(view, sizes, draw)
                colors = apply_appearance(view, self._crop(pixels, maps, sizes, view), draw)
            views[name] = View(self._normalize(colors), maps)
        return Batch(views, index, self.seed, images.step, images.epoch, images.progress)

    def _crop(self, pixels: Tensor, maps: Tensor, sizes: Tensor, view: Augment | Union) -> Tensor:
        crop, _ = resample(pixels, maps, (self.size, self.size), kind=view.interpolation, extent=sizes)
        return (crop / 255).clamp_(0, 1).contiguous()

    def _normalize(self, colors: Tensor) -> Tensor:
        statistics = torch.tensor((self.mean, self.std)).to(colors.device, non_blocking=True)
        mean, std = statistics.view(2, 1, 3, 1, 1)
        return ((colors - mean) / std).contiguous(memory_format=self.memory_format)
