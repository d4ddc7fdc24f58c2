"""The regions of images that guide Cellback and DiRL: where cells are, and where none are."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor

from densepath.annotations.cells.cell_points import CellPoints
from densepath.annotations.label_maps import LabelMaps
from densepath.concepts.image_labels import FromPath
from densepath.concepts.map_files import ClassMaps
from densepath.core.affine import identity, warp_points
from densepath.core.errors import UserError
from densepath.core.labels import main_labels
from densepath.core.regions import Regions
from densepath.methods.base import Method
from densepath.methods.needs import Need
from densepath.sources.pixel_source import PixelSource
from densepath.views.view import Batch, View

_SELDOM = 0.05  # with fewer pairs of views that both have a region, it teaches little


class CellPrior:
    """Assigns each position of a view to a region; the last region is the background.

    From cells: a position belongs to the class with the most cells in it, ties to the first class, and to the
    background if it has none. With two regions all classes are one. From label maps: a position belongs to the label
    that covers most of it; 0 is the background, and label i is region i - 1. With two regions all other labels are one.

    Args:
        source: "cells", points with classes; or "files", label maps of the images.
        num_regions: number of regions.
        shuffled: whether each image gets the cells of another image, always the same one: a control, which shows what
            cells teach beyond regions of such sizes and shapes.

    Source: DiRL, section 3.2: the cell prior P_c. It does not say how P_c follows a crop: here cells do exactly.
    """

    def __init__(self, source: Literal["cells", "files"], num_regions: int, shuffled: bool = False) -> None:
        if source not in ("cells", "files"):
            raise UserError(f"unknown prior {source!r}; there are: cells, files")
        if num_regions < 2:
            raise UserError(f"there are at least two regions, cells and background, not {num_regions}")
        if shuffled and source != "cells":
            raise UserError("only cells can be shuffled, not label maps; leave out --method.shuffled_cells")
        self.source = source
        self.shuffled = shuffled
        self.num_regions = num_regions

    def names(self) -> tuple[str, ...]:
        """The names of the regions: cell and back, or class_0, class_1, ... and back."""
        count = self.num_regions - 1
        return (*(["cell"] if count == 1 else [f"class_{number}" for number in range(count)]), "back")

    def check(self, given: Mapping[str, Any]) -> str | None:
        """Check that there is a region for each class of the cells, or for each label of the label maps.

        Args:
            given: what :meth:`needs` asks for.

        Returns:
            A line on the cells; None for label maps.

        Raises:
            UserError: there are classes or labels without a region.
        """
        if self.source == "files":
            self._check_maps(given["regions"])
            return None
        cells: CellPoints = given["cells"]
        classes = cells.class_names
        if self.num_regions > 2 and len(classes) != self.num_regions - 1:
            raise UserError(
                f"the cells have {len(classes)} classes ({', '.join(classes)}), which make {len(classes) + 1} regions "
                f"with the background, not {self.num_regions}; set --method.num_regions to that, or to 2 for all cells"
            )
        return cells.describe() + (", each image with those of another" if self.shuffled else "")

    def _check_maps(self, maps: LabelMaps) -> None:
        last = self.num_regions - 1
        if last > 1 and (largest := maps.largest()) > last:
            raise UserError(
                f"the label maps have numbers up to {largest}, and --method.num_regions {self.num_regions} takes 0 to "
                f"{last}, of which 0 is the background; number the labels so, or set --method.num_regions to the "
                "largest number + 1, or to 2 for one region of all numbers but 0"
            )

    def needs(self) -> Mapping[str, Need]:
        """The annotation of the images, by its name in a batch."""
        if self.source == "cells":
            return {"cells": Need("cells")}
        return {"regions": Need("regions", FromPath(ClassMaps, "a folder of label maps"))}

    def __call__(self, batch: Batch, view: View, grid: tuple[int, ...]) -> Tensor:
        """The region of each position of a view: (K * B, *grid) int64; -1 for none."""
        crops, last = len(view.map) // len(batch), self.num_regions - 1
        if self.source == "files":
            whole = identity(len(view.map), view.map.shape[1])
            maps = batch.extras["regions"]
            labels = main_labels(maps.repeat(crops, *[1] * (maps.ndim - 1)), whole, view.map, grid)
            region = torch.where(labels > 0, 0 if last == 1 else labels - 1, labels)
            return torch.where(labels == 0, last, torch.where(region < last, region, -1))
        points, classes = cells_in(batch, view)
        regions = Regions.of_points(points, grid, classes if last > 1 else None, last)
        return regions.masks.to(torch.uint8).argmax(dim=1).unflatten(1, grid)


def cells_in(batch: Batch, view: View) -> tuple[Tensor, Tensor]:
    """The cells of each crop of a view: points (K * B, N, 2) in its coordinates, NaN for padding, and classes."""
    cells = batch.extras["cells"].repeat(len(view.map) // len(batch), 1, 1)
    points, _ = warp_points(cells[..., :-1], identity(len(view.map), view.map.shape[1]), view.map)
    return points, cells[..., -1]


class GuidedByCells(Method):
    """What the methods with a prior have in common: its input, and a warning if a region is rare."""

    prior: CellPrior

    def needs(self) -> Mapping[str, Need]:
        return self.prior.needs()

    def prepare(self, images: PixelSource, given: Mapping[str, Any] = MappingProxyType({})) -> str | None:
        self.extras = {name: given[name].shuffled() if self.prior.shuffled else given[name] for name in self.needs()}
        return self.prior.check(given)

    def warnings(self, row: Mapping[str, float], last: bool) -> list[str]:
        what = "cells" if self.prior.source == "cells" else "label maps"
        seldom = [name for name in self.prior.names() if row.get(f"{name}_views", 1.0) < _SELDOM]
        lines = [
            f"fewer than {_SELDOM:.0%} of the global crops have a position of the region {name!r}: it teaches little; "
            f"check the {what}, or choose another --method.num_regions"
            for name in seldom
        ]
        return [*super().warnings(row, last), *lines]
