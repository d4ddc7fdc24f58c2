"""Concepts from a regular grid: g-ConCL."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from densepath.concepts.source import Concepts
from densepath.core.errors import UserError
from densepath.nets.backbones import Backbone
from densepath.views.view import Batch


class GridConcepts:
    """Divides the reference view into s x s equal squares, or s x s x s equal boxes of a volume, each a concept.

    Args:
        size: number s of squares along each side.
        ndim: dimensions of the images.

    Source: ConCL (ECCV 2022), section 4.2: s = 3, 5, 7.
    """

    def __init__(self, size: int = 3, ndim: int = 2) -> None:
        if size < 1:
            raise UserError(f"grid_size is {size}; a grid of concepts needs at least one square per side")
        self.shape = (size,) * ndim
        self.num_concepts = size**ndim

    def check(self, backbone: Backbone, size: Sequence[int]) -> None:
        """Accepts any view."""

    def __call__(self, batch: Batch, encoder: Backbone) -> Concepts:
        ids = torch.arange(self.num_concepts, device=batch["reference"].pixels.device)
        labels = ids.view(1, *self.shape).expand(len(batch), *self.shape)
        return Concepts(labels, batch["reference"].map)
