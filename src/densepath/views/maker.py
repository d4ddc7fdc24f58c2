"""Views of whole batches, computed on the device of the images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from densepath.core.affine import bounds
from densepath.core.boxes import onto_boxes
from densepath.core.errors import UserError, counted
from densepath.core.grids import EDGE_TOLERANCE, inside
from densepath.core.resampling import sample
from densepath.core.torch_defaults import torch_defaults
from densepath.sources.batch import ImageBatch
from densepath.sources.pixel_source import PixelSpec
from densepath.views.declarations import Declaration, RandomView, Turned, check_views, crop_counts, view_sizes
from densepath.views.plan import Plan, PlannedView, plan_views
from densepath.views.turns import turned
from densepath.views.view import Batch, View

# Pixels of a view that are processed at a time on a CPU, per thread: bounds the memory of operations.
_CACHED = 2**20


class ViewMaker:
    """Computes the views that a method declares.

    Args:
        views: name -> declaration. One that refers to others is declared after them.
        size: the views' size in pixels, in the order of the tensor's axes; a number for equal sides.
        seed: the run's seed. A view is a function of (seed, epoch, image, position of the view in ``views``).
        spec: the meaning of the pixels' values, and their normalization; by default, as each batch's source has it, and
            8-bit RGB for a batch that has none.
        memory_format: memory format of the views, as the networks prefer it; for volumes, its 3D counterpart.
        early: pairs of epochs and a size, in ascending order: the size of the views before so many epochs are done.

    Raises:
        UserError: these views cannot be made of these images; without ``spec``, when they are made.
    """

    def __init__(
        self,
        views: Mapping[str, Declaration],
        size: int | Sequence[int],
        seed: int,
        spec: PixelSpec | None = None,
        memory_format: torch.memory_format = torch.contiguous_format,
        early: Sequence[tuple[float, int | Sequence[int]]] = (),
    ) -> None:
        self.views = dict(views)
        self.size = size
        self.seed = seed
        self.spec = spec or PixelSpec()
        self._given = spec is not None
        self._other = self  # for images of another specification, the last one seen
        if self.spec.ndim == 3 and memory_format == torch.channels_last:
            memory_format = torch.channels_last_3d
        self.memory_format = memory_format
        self.early = tuple(early)
        for each in (size, *(size for _, size in self.early)):
            check_views(self.views, self.spec, each)

    def sizes(self) -> dict[str, tuple[int, ...]]:
        """The sizes of the views in pixels, by name."""
        return view_sizes(self.views, self.size, self.spec.ndim)

    @torch_defaults()
    def draw(self, index: Tensor, sizes: Tensor, spacing: Tensor | None = None, epoch: float = 0.0) -> Plan:
        """Where the views of images lie. No pixels are needed.

        Args:
            index: (B,) int64, the images' positions in their source, on the CPU.
            sizes: (B, d) int64, their sizes in pixels, in the order of the tensor's axes.
            spacing: (B, d) the distance of neighboring pixels along each axis; None where unknown.
            epoch: epochs done so far; random numbers ignore its fraction.
        """
        return self._drawn(index, sizes, spacing, epoch)

    @torch_defaults()
    def __call__(self, images: ImageBatch) -> Batch:
        """The views of images: as planned, if the batch has a plan, else drawn now."""
        plan = images.plan or self._drawn(images.index, images.sizes, images.spacing, images.epoch)
        return self._maker_for(images)._made(images, plan)

    @torch_defaults()
    def make(self, images: ImageBatch, plan: Plan) -> Batch:
        """The views of images.

        Args:
            images: the images, or boxes of them that contain the pixels of the plan (see :meth:`Plan.boxes`).
            plan: where the views lie.

        Raises:
            UserError: the images have another number of channels than the maker's specification.
        """
        return self._maker_for(images)._made(images, plan)

    def _drawn(self, index: Tensor, sizes: Tensor, spacing: Tensor | None, epoch: float) -> Plan:
        size = next((size for until, size in self.early if epoch < until), self.size)
        return plan_views(self.views, size, self.seed, int(epoch), index, sizes, spacing)

    def _maker_for(self, images: ImageBatch) -> ViewMaker:
        """The maker of these views of such images. Raises UserError if they cannot be made."""
        maker = self
        if not self._given and images.spec not in (None, self.spec):
            if self._other.spec != images.spec:
                self._other = ViewMaker(self.views, self.size, self.seed, images.spec, self.memory_format, self.early)
            maker = self._other
        if (channels := images.pixels.shape[-1]) != maker.spec.channels:
            raise UserError(
                f"images with {counted(channels, 'channel')} do not fit the pixel specification, which has "
                f"{maker.spec.channels}; give ViewMaker the one of their source (spec=images.spec)"
            )
        return maker

    @torch.no_grad()
    def _made(self, images: ImageBatch, plan: Plan) -> Batch:
        counts = crop_counts(self.views)
        device, channels = images.pixels.device, images.pixels.shape[-1]
        views: dict[str, View] = {}
        for name, planned in plan.views.items():
            shape = (counts[name] * len(images), channels, *planned.size)
            views[name] = View(torch.empty(shape, device=device, memory_format=self.memory_format), planned.map)
        shown = {view.of for view in self.views.values() if isinstance(view, Turned) and view.clean}
        for rows in self._shares(images, plan):
            part = images.pixels[rows].movedim(-1, 1)
            if device.type != "cpu" or part.is_floating_point():
                part = part.to(torch.float32)  # once for all views; on a CPU, whole numbers are converted as sampled
            clean: dict[str, Tensor] = {}  # the views that others show without their changed appearance
            for name, view in self.views.items():
                of_crops = torch.arange(counts[name]).unsqueeze(1) * len(images) + torch.arange(rows.start, rows.stop)
                of_rows = of_crops.flatten()
                if isinstance(view, Turned) and (not view.clean or view.of in clean):
                    here = of_rows.to(device, non_blocking=True)
                    other = clean[view.of] if view.clean else views[view.of].pixels[here]
                    linear = torch.linalg.solve(*(plan.views[n].map[of_rows, :, :-1] for n in (view.of, name)))
                    made = turned(other, linear.round() + 0.0)  # no -0
                else:
                    made = self._original(plan.views[name], of_crops, part, images, rows)
                    if name in shown:
                        clean[name] = self.spec.normalize(made.clone())
                    draw = plan.views[name].draw.take(of_rows)
                    for operation in view.appearance if isinstance(view, RandomView) else ():
                        made = operation.apply(made, draw)
                    made = self.spec.normalize(made)
                for crop, pixels in zip(of_crops, made.chunk(counts[name]), strict=True):
                    place = views[name].pixels[int(crop[0]) : int(crop[-1]) + 1]
                    for channel in range(channels):  # many times faster than all at once, if channels are last
                        place[:, channel] = pixels[:, channel]
        return Batch(views, images.index, self.seed, images.step, images.epoch, images.progress, images.extras)

    def _original(
        self, planned: PlannedView, of_crops: Tensor, part: Tensor, images: ImageBatch, rows: slice
    ) -> Tensor:
        """The pixels (K * b, C, *size) in [0, 1] of the crops (K, b) of some images (b, C, *spatial)."""
        of_rows = of_crops.flatten()
        maps, extent = planned.map[of_rows], images.sizes[rows].repeat(len(of_crops), 1)
        if images.boxes is not None:
            low, high = images.boxes[rows].repeat(len(of_crops), 1, 1).unbind(1)
            maps, extent = onto_boxes(maps, extent, low, high), high - low
            if images.extent is not None:  # in float32, as for whole images: a box that is the image gives equal views
                maps, extent = maps.float(), images.extent[rows].repeat(len(of_crops), 1)
        elif self.spec.ndim == 3:
            maps = maps.double()  # as for boxes, so that both give the same views
        source = torch.arange(rows.stop - rows.start).repeat(len(of_crops)) if len(of_crops) > 1 else None
        pixels = sample(part, maps, planned.size, mode=planned.interpolation, extent=extent, rows=source).contiguous()
        if images.extent is not None:
            pixels = _only_inside(pixels, planned.map[of_rows])
        return self.spec.apply_window(pixels)

    def _shares(self, images: ImageBatch, plan: Plan) -> list[slice]:
        """The parts of a batch that are processed one after another."""
        total = count = len(images)
        if images.pixels.device.type == "cpu":
            largest = max(len(view.map) // total * math.prod(view.size) for view in plan.views.values())
            count = max(1, torch.get_num_threads() * _CACHED // largest)
        return [slice(start, min(start + count, total)) for start in range(0, total, count)]


def _only_inside(pixels: Tensor, maps: Tensor) -> Tensor:
    """Pixels (N, C, *size) with zeros where a position's center lies outside of the image: a box may reach further."""
    low, high = bounds(maps)
    if bool((torch.maximum(-low, high) > 1 + EDGE_TOLERANCE).any()):
        pixels = pixels * inside(maps.to(pixels.device, non_blocking=True), pixels.shape[2:]).unsqueeze(1)
    return pixels
