"""Where the views of a batch lie, before any pixel is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from densepath.core.affine import compose, union
from densepath.core.boxes import needed_boxes
from densepath.core.filters import Mode
from densepath.views.crops import Crop, Pattern, SecondWindow, Window, WindowPair
from densepath.views.declarations import Center, Cover, Declaration, Turned, crop_counts, view_sizes
from densepath.views.geometry import center_maps, crop_maps, pose_maps, window_maps
from densepath.views.patterns import pattern_maps
from densepath.views.random_streams import Draw
from densepath.views.turns import turn_maps
from densepath.views.window_pairs import window_pairs

_CROP_SHIFT = 8  # crop k of view number n has the random numbers of view n + (k << 8)


@dataclass(frozen=True, eq=False)
class PlannedView:
    """Where a view of each image lies.

    Args:
        map: (K * B, d, d + 1) float32, from the view to its image; row k * B + b is crop k of image b.
        draw: the random numbers of those rows.
        size: size of the view in pixels, in the order of the tensor's axes.
        interpolation: the filter of its resampling.
    """

    map: Tensor
    draw: Draw
    size: tuple[int, ...]
    interpolation: Mode


@dataclass(frozen=True, eq=False)
class Plan:
    """Where the views of a batch lie, on the CPU: with it a loader reads only the pixels that the views need.

    Args:
        views: by name, in the order of their declarations.
        index: (B,) int64, the images' positions in their source.
    """

    views: Mapping[str, PlannedView]
    index: Tensor

    def boxes(self, sizes: Tensor) -> Tensor:
        """(B, 2, d) int64: the low corner (included) and the high one (excluded) of the pixels that the views need.

        These are all pixels within reach of the filters, so views of the boxes equal views of whole images.

        Args:
            sizes: (B, d) int64, the images' sizes in pixels, in the order of the tensor's axes.
        """
        boxes = []
        for view in self.views.values():
            extent = sizes.repeat(len(view.map) // len(sizes), 1)
            own = needed_boxes(view.map, view.size, view.interpolation, extent)
            boxes.append(own.unflatten(0, (-1, len(sizes))))
        all_boxes = torch.cat(boxes)  # (crops of all views, B, 2, d)
        return torch.stack((all_boxes[:, :, 0].amin(0), all_boxes[:, :, 1].amax(0)), dim=1)


def plan_views(
    views: Mapping[str, Declaration],
    size: int | Sequence[int],
    seed: int,
    epoch: int,
    index: Tensor,
    sizes: Tensor,
    spacing: Tensor | None = None,
) -> Plan:
    """Draw where the views of images lie: a function of (seed, epoch, image, position of the view in ``views``).

    Args:
        views: name -> declaration.
        size: the run's view size.
        seed: the run's seed.
        epoch: whole epochs done so far.
        index: (B,) int64, the images' positions in their source.
        sizes: (B, d) int64, their sizes in pixels, in the order of the tensor's axes.
        spacing: (B, d) the distance of neighboring pixels along each axis; None where unknown.
    """
    planned: dict[str, PlannedView] = {}
    pairs: dict[str, Tensor] = {}  # the second windows
    counts, view_size = crop_counts(views), view_sizes(views, size, sizes.shape[1])
    for number, (name, view) in enumerate(views.items()):
        count, own_size = counts[name], view_size[name]
        numbers = (number + (torch.arange(count) << _CROP_SHIFT)).repeat_interleave(len(index))
        draw = Draw(seed, epoch, index.repeat(count), numbers)
        all_sizes = sizes.repeat(count, 1)
        filter_: Mode = "bilinear"
        if isinstance(view, Cover):
            maps, filter_ = union(planned[view.of[0]].map, planned[view.of[1]].map), view.interpolation
        elif isinstance(view, Center):
            maps, filter_ = center_maps(view.share, sizes, own_size), view.interpolation
        elif isinstance(view, Turned):
            other = planned[view.of]
            maps = compose(other.map, turn_maps(view.flip, view.quarter_turns, draw, sizes.shape[1]))
            filter_ = other.interpolation
        else:
            crop, all_spacing = view.crop, None if spacing is None else spacing.repeat(count, 1)
            filter_ = crop.interpolation
            if isinstance(crop, Crop):
                maps = crop_maps(crop, all_sizes, own_size, draw, all_spacing)
            else:
                if isinstance(crop, WindowPair):
                    maps, pairs[name] = window_pairs(crop, all_sizes, draw)
                elif isinstance(crop, Window):
                    maps = window_maps(all_sizes, own_size, draw)
                elif isinstance(crop, Pattern):
                    maps = pattern_maps(crop, all_sizes, own_size, draw)
                elif isinstance(crop, SecondWindow):
                    maps = pairs[crop.of]
                maps = pose_maps(crop, maps, all_sizes, draw, all_spacing)
        planned[name] = PlannedView(maps, draw, own_size, filter_)
    return Plan(planned, index)
