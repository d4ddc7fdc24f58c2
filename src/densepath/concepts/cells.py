"""Concepts from cells: neighborhoods of cells, and the background between them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from densepath.concepts.source import Concepts
from densepath.core.affine import identity, warp_points
from densepath.core.errors import UserError
from densepath.core.regions import point_counts
from densepath.nets.backbones import Backbone
from densepath.views.view import Batch

POSITIONS = 14  # along each side of the reference view: the tokens of a view of 224 px, as in DiRL
ITERATIONS = 4  # of k-means; on at most 196 positions it hardly changes after that


class CellConcepts:
    """Divides the cellular part of the reference view into compact neighborhoods; the last concept is the background.

    A position is cellular if it contains a cell (DiRL's prior). K-means of the cellular positions' places, started at
    positions far from each other, gives the neighborhoods. With one neighborhood the concepts are cellular tissue and
    background. All of it is computed for the batch at once, and without random numbers.

    Args:
        num_neighborhoods: number K of neighborhoods; an image with fewer cellular positions has fewer.
    """

    def __init__(self, num_neighborhoods: int = 8) -> None:
        if not 1 <= num_neighborhoods <= POSITIONS**2:
            raise UserError(
                f"num_concepts is {num_neighborhoods}; give 1 for cellular tissue and background, or up to "
                f"{POSITIONS**2} neighborhoods of cells"
            )
        self.num_neighborhoods = num_neighborhoods
        self.num_concepts = num_neighborhoods + 1

    def check(self, backbone: Backbone, size: Sequence[int]) -> None:
        """Accepts any view."""

    def __call__(self, batch: Batch, encoder: Backbone) -> Concepts:
        if "cells" not in batch.extras:
            raise UserError(
                "these concepts are made of cells, and the batch has none; call the method's prepare, and give its "
                "extras to ImageBatches"
            )
        view = batch["reference"]
        points, _ = warp_points(batch.extras["cells"][..., :2], identity(len(batch)), view.map)
        counts = point_counts(points, (POSITIONS, POSITIONS))  # (B, 14, 14)
        labels = neighborhoods(counts > 0, self.num_neighborhoods)
        cellular = (counts > 0).float().mean()
        return Concepts(labels, view.map, {"cellular_share": cellular})


def neighborhoods(cellular: Tensor, count: int) -> Tensor:
    """Number the neighborhoods of marked positions.

    Args:
        cellular: (B, h, w) bool.
        count: K.

    Returns:
        (B, h, w) int64 from 0 to K - 1 at marked positions, K elsewhere.
    """
    batch, height, width = cellular.shape
    marked = cellular.flatten(1)  # (B, P)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    places = torch.stack((y.flatten(), x.flatten()), dim=1).float().to(cellular.device, non_blocking=True)  # (P, 2)
    squares = (places[:, None] - places[None]).square().sum(-1)  # (P, P)
    first = marked.to(torch.int8).argmax(dim=1)  # the first marked position
    distance, seeds = squares[first], [first]  # (B, P)
    for _ in range(count - 1):  # the position farthest from all seeds; of equally far ones the first
        order = torch.arange(height * width, device=cellular.device) / (height * width + 1)
        seeds.append(torch.where(marked, distance - order, -2.0).argmax(dim=1))
        distance = torch.minimum(distance, squares[seeds[-1]])
    centers = places[torch.stack(seeds, dim=1)]  # (B, K, 2)
    for step in range(ITERATIONS):
        apart = (places[None, :, None] - centers[:, None]).square().sum(-1)  # (B, P, K)
        nearest = apart.argmin(dim=2)
        if step == ITERATIONS - 1:
            break
        chosen = torch.nn.functional.one_hot(nearest, count).float() * marked.unsqueeze(2)
        size = chosen.sum(1).unsqueeze(2)  # (B, K, 1)
        with torch.autocast(places.device.type, enabled=False):  # in half precision sums of places are not exact
            sums = torch.einsum("bpk,pd->bkd", chosen, places)
        means = sums / size.clamp(min=1)
        centers = torch.where(size > 0, means, centers)
    return torch.where(marked, nearest, count).view(batch, height, width)
