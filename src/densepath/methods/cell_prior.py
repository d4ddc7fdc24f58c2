"""The regions of images that guide Cellback and DiRL: where cells are, and where none are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from densepath.concepts.image_labels import FromPath
from densepath.concepts.map_files import MapFiles
from densepath.core.affine import identity, warp_points
from densepath.core.errors import UserError
from densepath.core.labels import main_labels
from densepath.core.regions import point_counts
from densepath.methods.needs import Need
from densepath.views.view import Batch, View


class CellPrior:
    """Assigns each position of a view to a region; the last region is the background.

    From cells: a position belongs to the class with the most cells in it, ties to the first class, and to the
    background if it has none. With two regions all classes are one. From label maps: a position belongs to the label
    that covers most of it; 0 is the background, and label i is region i - 1. With two regions all other labels are one.

    Args:
        source: "cells", points with classes; or "files", label maps of the images.
        num_regions: number of regions.

    Source: DiRL, section 3.2: the cell prior P_c. It does not say how P_c follows a crop: here cells do exactly.
    """

    def __init__(self, source: Literal["cells", "files"], num_regions: int) -> None:
        if source not in ("cells", "files"):
            raise UserError(f"unknown prior {source!r}; there are: cells, files")
        if num_regions < 2:
            raise UserError(f"there are at least two regions, cells and background, not {num_regions}")
        self.source = source
        self.num_regions = num_regions

    def names(self) -> tuple[str, ...]:
        """The names of the regions: cell and back, or class_0, class_1, ... and back."""
        count = self.num_regions - 1
        return (*(["cell"] if count == 1 else [f"class_{number}" for number in range(count)]), "back")

    def needs(self) -> Mapping[str, Need]:
        """The annotation of the images, by its name in a batch."""
        if self.source == "cells":
            return {"cells": Need("cells")}
        return {"regions": Need("regions", FromPath(MapFiles, "a folder of label maps"))}

    def __call__(self, batch: Batch, view: View, grid: tuple[int, ...]) -> Tensor:
        """The region of each position of a view: (K * B, *grid) int64; -1 for none."""
        crops, last = len(view.map) // len(batch), self.num_regions - 1
        whole = identity(len(view.map), view.map.shape[1])
        if self.source == "files":
            labels = main_labels(batch.extras["regions"].repeat(crops, 1, 1), whole, view.map, grid)
            region = torch.where(labels > 0, 0 if last == 1 else labels - 1, labels)
            return torch.where(labels == 0, last, torch.where(region < last, region, -1))
        cells = batch.extras["cells"]
        points, _ = warp_points(cells[..., :-1].repeat(crops, 1, 1), whole, view.map)
        if last == 1:
            return torch.where(point_counts(points, grid) > 0, 0, 1)
        classes = cells[..., -1:].repeat(crops, 1, 1)
        counts = [point_counts(points.masked_fill(classes != number, torch.nan), grid) for number in range(last)]
        most, region = torch.stack(counts, dim=1).max(dim=1)
        return torch.where(most > 0, region, last)
