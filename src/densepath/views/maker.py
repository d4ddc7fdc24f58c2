"""Views of whole batches, made where the images lie."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from densepath.core.affine import union
from densepath.core.random import uniform
from densepath.core.resampling import sample
from densepath.sources.batch import ImageBatch
from densepath.sources.pixel_source import PixelSpec
from densepath.views.appearance import apply_appearance
from densepath.views.augment import Augment, Center, Union
from densepath.views.geometry import Draw, center_maps, random_maps
from densepath.views.random_streams import COUNT
from densepath.views.view import Batch, View

# Pixels of a view that are worked on at a time on a CPU, per thread: bounds the memory that operations take.
_CACHED = 2**18
_RGB = PixelSpec()


class ViewMaker:
    """Makes the views that a method declares.

    Args:
        views: name -> declaration. A :class:`Union` stands after the views that it covers.
        size: the views' height and width in pixels.
        seed: the run's seed. A view is a function of (seed, epoch, image, place of the view among the names).
        spec: what the images' numbers mean, and how they are normalized.
        memory_format: of the pixels, as the networks like them.
    """

    def __init__(
        self,
        views: Mapping[str, Augment | Union | Center],
        size: int,
        seed: int,
        spec: PixelSpec = _RGB,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> None:
        self.views = dict(views)
        self.size = size
        self.seed = seed
        self.spec = spec
        self.memory_format = memory_format

    @torch.no_grad()
    def __call__(self, images: ImageBatch) -> Batch:
        views: dict[str, View] = {}
        draws: dict[str, Tensor] = {}
        slots = torch.arange(COUNT)
        shape = (len(images), self.spec.channels, self.size, self.size)
        for number, (name, view) in enumerate(self.views.items()):
            if isinstance(view, Union):
                first, second = view.of
                maps = union(views[first].map, views[second].map)
            elif isinstance(view, Center):
                maps = center_maps(view.share, images.sizes)
            else:
                draws[name] = uniform(self.seed, int(images.epoch), images.index[:, None], number, slots)
                maps = random_maps(view, images.sizes, _by_slot(draws[name]))
            pixels = torch.empty(shape, device=images.pixels.device, memory_format=self.memory_format)
            views[name] = View(pixels, maps)
        for rows in self._shares(images):
            source = images.pixels[rows].permute(0, 3, 1, 2).to(torch.float32)
            for name, view in self.views.items():
                colors = self._crop(source, views[name].map[rows], images.sizes[rows], view)
                if isinstance(view, Augment):
                    apply_appearance(view, colors, _by_slot(draws[name][rows]))
                views[name].pixels[rows] = self.spec.normalize(colors)
        return Batch(views, images.index, self.seed, images.step, images.epoch, images.progress, images.extras)

    def _shares(self, images: ImageBatch) -> list[slice]:
        """The parts of a batch that are worked on one after another."""
        count = len(images)
        if images.pixels.device.type == "cpu":
            count = max(1, torch.get_num_threads() * _CACHED // self.size**2)
        return [slice(start, start + count) for start in range(0, len(images), count)]

    def _crop(self, pixels: Tensor, maps: Tensor, sizes: Tensor, view: Augment | Union | Center) -> Tensor:
        crop = sample(pixels, maps, (self.size, self.size), kind=view.interpolation, extent=sizes)
        return self.spec.apply_window(crop.contiguous())


def _by_slot(numbers: Tensor) -> Draw:
    """The numbers (B, slots, 4) of a view, slot by slot."""
    return lambda slot: numbers[:, slot]
