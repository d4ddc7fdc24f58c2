"""Concepts from the features of the momentum encoder: b-ConCL."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from densepath.concepts.source import Concepts
from densepath.core.clustering import spherical_kmeans
from densepath.core.errors import UserError, counted
from densepath.nets.backbones import Backbone
from densepath.views.view import Batch

ITERATIONS = 10  # as in the released code


class KMeansConcepts:
    """Clusters the momentum encoder's features of the reference view, separately for each image.

    Centroids start at random positions, drawn with replacement, as in the released code. An empty cluster is restarted
    at a random position of its own (the released code draws one position for the whole batch).

    Args:
        stage: the stage f1..f5 whose features are clustered; the encoder stops there.
        num_concepts: number K of clusters.

    Source: ConCL (ECCV 2022), section 4.4: K = 8 on f4 or f5.
    """

    def __init__(self, stage: int = 4, num_concepts: int = 8) -> None:
        if num_concepts < 1:
            raise UserError(f"num_concepts is {num_concepts}; k-means needs at least one concept")
        self.stage = stage
        self.num_concepts = num_concepts

    def check(self, backbone: Backbone, size: Sequence[int]) -> None:
        """Raises UserError for an unknown stage, or for more clusters than positions."""
        backbone.check_stage(self.stage)
        self._check_positions(math.prod(backbone.grid(self.stage, *size)))

    def _check_positions(self, positions: int) -> None:
        if positions < self.num_concepts:
            raise UserError(
                f"{counted(self.num_concepts, 'concept')} cannot be found at the {counted(positions, 'position')} of "
                f"stage f{self.stage}; use fewer concepts, an earlier stage or larger views"
            )

    @torch.no_grad()
    def __call__(self, batch: Batch, encoder: Backbone) -> Concepts:
        pixels = batch["reference"].pixels
        features = encoder(pixels, last=self.stage)[self.stage]
        count, positions = len(features), features[0, 0].numel()
        self._check_positions(positions)
        draws = batch.uniform((1 + ITERATIONS) * self.num_concepts)
        starts = (draws * positions).long().view(count, 1 + ITERATIONS, self.num_concepts).transpose(0, 1)
        starts = starts.to(pixels.device, non_blocking=True)
        labels, empty = spherical_kmeans(features.flatten(2).transpose(1, 2), starts[0], starts[1:])
        labels = labels.view(count, *features.shape[2:])
        return Concepts(labels, batch["reference"].map, {"empty_clusters": empty.float().mean()})
