"""The patches that are trained on: pixels and classes under one map."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from densepath.core.boxes import onto_boxes
from densepath.core.grids import inside
from densepath.core.resampling import sample_nearest
from densepath.sources.batch import ImageBatch
from densepath.sources.pixel_source import PixelSpec
from densepath.transfer.segment.config import Patches
from densepath.transfer.segment.truth import Truth
from densepath.views.declarations import without_color
from densepath.views.maker import ViewMaker
from densepath.views.plan import Plan
from densepath.views.random_streams import Draw, Stream

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
        views, _ = without_color({_VIEW: patches.random_view()}, {}, spec)
        self._views = ViewMaker(views, size, seed, spec, memory_format)
        self._size, self._zoom, self._truth, self._oversample = tuple(size), patches.zoom, truth, oversample
        self._rotated = patches.rotation > 0

    def draw(self, index: Tensor, sizes: Tensor, spacing: Tensor | None = None, epoch: float = 0.0) -> Plan:
        """Where the patches of images lie; arguments as for :meth:`ViewMaker.draw`."""
        patch = torch.tensor(self._size)
        # Of images shorter than a patch, padded to its size: their low corner is that of the patch
        padded = torch.maximum(sizes, patch)
        plan = self._views.draw(index, padded, spacing, epoch)
        planned = plan.views[_VIEW]
        maps = onto_boxes(planned.map, padded, torch.zeros_like(sizes), sizes).float()
        linear = maps[..., :-1]
        if self._rotated:  # which shrank patches that would leave the image; they are moved instead
            whole = (patch / sizes).prod(1)
            linear = linear * (whole / torch.linalg.det(linear).abs()).pow(1 / len(patch)).view(-1, 1, 1)
        low, high = map(math.log, self._zoom)
        if low or high:
            linear = linear * torch.exp(low + (high - low) * planned.draw(Stream.PATCH)[:, :1, None])
        center = self._centers(linear, maps[..., -1:], planned.draw, index, sizes)
        return Plan({_VIEW: replace(planned, map=torch.cat((linear, center), dim=-1))}, plan.index)

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

    def _centers(self, linear: Tensor, center: Tensor, draw: Draw, index: Tensor, sizes: Tensor) -> Tensor:
        """(B, d, 1) centers of patches in their images: some on a pixel that is not background, at whole pixels.

        A patch that fits into its image lies in it; along an axis where it is longer it begins at the low corner.
        """
        reach = linear.abs().sum(-1, keepdim=True)
        room = 1 - reach
        if self._rotated or self._zoom != (1, 1):  # uniform in the room that the patch has now
            center = (2 * draw(Stream.CROP)[:, : len(self._size), None] - 1) * room.clamp(min=0)
        numbers = draw(Stream.PATCH) if self._oversample else torch.ones(len(index), 4)
        for row in torch.nonzero(numbers[:, 1] < self._oversample).flatten().tolist():
            found = self._truth.point(int(index[row]), *numbers[row, 2:].tolist())
            if found is not None:
                point = torch.tensor(found[::-1])  # x first, like the maps
                across = sizes[row].flip(0).float()
                corner = (point + 0.5 - reach[row, :, 0] * across / 2).round()
                center[row, :, 0] = 2 * corner / across - 1 + reach[row, :, 0]
        return torch.where(room >= 0, torch.minimum(torch.maximum(center, -room), room), -room)
