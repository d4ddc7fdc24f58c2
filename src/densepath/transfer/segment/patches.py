"""The patches that are trained on: pixels and classes under one map."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from densepath.core.affine import onto_boxes
from densepath.core.grids import inside
from densepath.core.resampling import sample_nearest
from densepath.sources.batch import ImageBatch
from densepath.sources.pixel_source import PixelSpec
from densepath.transfer.segment.config import Patches
from densepath.transfer.segment.truth import Truth
from densepath.views.maker import ViewMaker
from densepath.views.plan import Plan, PlannedView
from densepath.views.random_streams import Stream

TRUTH = "truth"  # an extra of batches
_VIEW = "image"


class PatchMaker:
    """Makes patches of images with the classes of their pixels.

    Args:
        patches: how patches are flipped, rotated, zoomed and colored.
        size: of a patch in pixels, in the order of the tensor's axes.
        seed: a patch is a function of seed, epoch and image.
        spec: of the pixels.
        truth: the classes of the images.
        oversample: share of the patches that are centered on a pixel that is not background, in images with such.
        memory_format: of the pixels.
    """

    def __init__(
        self,
        patches: Patches,
        size: Sequence[int],
        seed: int,
        spec: PixelSpec,
        truth: Truth,
        oversample: float = 0.0,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> None:
        self._views = ViewMaker({_VIEW: patches.random_view()}, size, seed, spec, memory_format)
        self._size, self._zoom, self._truth, self._oversample = tuple(size), patches.zoom, truth, oversample

    def draw(self, index: Tensor, sizes: Tensor, spacing: Tensor | None = None, epoch: float = 0.0) -> Plan:
        """Where the patches of images lie; arguments as for :meth:`ViewMaker.draw`."""
        plan = self._views.draw(index, sizes, spacing, epoch)
        planned = self._zoomed(plan.views[_VIEW])
        return Plan({_VIEW: self._centered(planned, index, sizes)}, plan.index)

    def __call__(self, batch: ImageBatch) -> tuple[Tensor, Tensor]:
        """Pixels (B, C, *size), 0 outside of an image, and classes (B, *size) int64, -1 where there is none."""
        plan: Plan = batch.plan or self.draw(batch.index, batch.sizes, batch.spacing, batch.epoch)
        view = self._views.make(batch, plan)[_VIEW]
        maps = view.map
        within = inside(maps.to(view.pixels.device, non_blocking=True), self._size).unsqueeze(1)
        labels = batch.extras[TRUTH]  # (B, *canvas)
        low = torch.zeros_like(batch.sizes) if batch.boxes is None else batch.boxes[:, 0].long()
        onto = onto_boxes(maps, batch.sizes, low, low + torch.tensor(labels.shape[1:]))
        classes = sample_nearest(labels.unsqueeze(1).float(), onto.float(), self._size)[:, 0].long() - 1
        return view.pixels * within, classes

    def _zoomed(self, planned: PlannedView) -> PlannedView:
        low, high = self._zoom
        if low == high == 1:
            return planned
        share = planned.draw(Stream.PATCH)[:, :1, None]
        factor = torch.exp(math.log(low) + (math.log(high) - math.log(low)) * share)
        return replace(
            planned, map=_kept_inside(torch.cat((planned.map[..., :-1] * factor, planned.map[..., -1:]), -1))
        )

    def _centered(self, planned: PlannedView, index: Tensor, sizes: Tensor) -> PlannedView:
        """Move some patches to a pixel that is not background, by whole pixels."""
        if not self._oversample:
            return planned
        numbers, maps = planned.draw(Stream.PATCH), planned.map.clone()
        for row in torch.nonzero(numbers[:, 1] < self._oversample).flatten().tolist():
            points = self._truth.points(int(index[row]))
            if not len(points):
                continue
            point = torch.from_numpy(points[int(numbers[row, 2] * len(points))]).flip(0)  # x first, like the maps
            across = sizes[row].flip(0).float()
            reach = maps[row, :, :-1].abs().sum(-1)
            corner = (point + 0.5 - reach * across / 2).round()
            maps[row, :, -1] = (2 * corner / across - 1) + reach
        return replace(planned, map=_kept_inside(maps))


def _kept_inside(maps: Tensor) -> Tensor:
    """Maps moved so that their views lie in the image; from its low corner on along an axis where they are longer."""
    reach = maps[..., :-1].abs().sum(-1)
    room = 1 - reach
    center = torch.where(room >= 0, maps[..., -1].clamp(-room.clamp(min=0), room.clamp(min=0)), -room)
    return torch.cat((maps[..., :-1], center.unsqueeze(-1)), dim=-1)
