"""The concepts that a backbone finds on a tile."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from densepath.concepts.kmeans import ITERATIONS
from densepath.core.clustering import spherical_kmeans
from densepath.core.errors import UserError, counted
from densepath.core.random import uniform
from densepath.nets.backbones import Backbone
from densepath.sources.pixel_source import PixelSpec

_RGB = PixelSpec()
_MARGIN = 96  # pixels, at least


class TileTooSmall(UserError):
    """A tile on which a backbone has too few positions."""


@torch.no_grad()
def find_concepts(
    backbone: Backbone,
    tile: np.ndarray,
    stages: Sequence[int],
    num_concepts: int = 8,
    seed: int = 0,
    spec: PixelSpec = _RGB,
) -> dict[int, np.ndarray]:
    """Cluster a tile's features as b-ConCL does in training, with the current weights.

    The tile is padded by reflection and the concepts of the padding are left out: zero padding would lead to concepts
    of its own along the borders.

    Args:
        backbone: the backbone; it runs in evaluation mode, and its mode is restored.
        tile: (H, W, C) with the channels of the backbone.
        stages: stages to cluster, from f1..f5.
        num_concepts: K.
        seed: seed of the initial positions of the clusters.
        spec: how the backbone sees pixels.

    Returns:
        Stage i -> (H, W) ids; the pixels of a position have the same.

    Raises:
        TileTooSmall: the tile is too small for its margin, or has fewer positions there than concepts.
        UserError: the backbone has no such stage.
    """
    if not stages:
        raise UserError("no stage is given; name some of f1..f5, e.g. 3 4 5")
    if num_concepts < 1:
        raise UserError(f"num_concepts is {num_concepts}; k-means needs at least one concept")
    for stage in stages:
        backbone.check_stage(stage)
    device, training_mode = next(backbone.parameters()).device, backbone.training
    stride = max(backbone.strides[max(stages)])
    margin = -(-_MARGIN // stride) * stride
    height, width = tile.shape[:2]
    if min(height, width) < (least := margin + stride):
        raise TileTooSmall(
            f"a tile of {width} x {height} px is too small to show concepts; give at least {least} x {least} px"
        )
    stored = torch.from_numpy(tile.copy()).permute(2, 0, 1).unsqueeze(0)
    pixels = spec.normalize(spec.apply_window(stored.float()))
    around = (margin, margin + -width % stride, margin, margin + -height % stride)  # to multiples of the stride
    mirrored = F.pad(pixels.to(device), around, mode="reflect")
    features = backbone.eval()(mirrored, last=max(stages))
    backbone.train(training_mode)
    concepts = {}
    for stage in stages:
        side = max(backbone.strides[stage])
        edge, rows, columns = margin // side, -(-height // side), -(-width // side)
        inner = features[stage][:, :, edge : edge + rows, edge : edge + columns]
        positions = inner.shape[2] * inner.shape[3]
        if positions < num_concepts:
            raise TileTooSmall(
                f"{counted(num_concepts, 'concept')} cannot be found at {counted(positions, 'position')} of stage "
                f"f{stage}; use fewer"
            )
        draws = uniform(seed, 0, torch.arange((1 + ITERATIONS) * num_concepts), view=0, stream=stage)[:, 0]
        starts = (draws * positions).long().view(1 + ITERATIONS, 1, num_concepts).to(device)
        labels, _ = spherical_kmeans(inner.flatten(2).transpose(1, 2), starts[0], starts[1:])
        ids = labels.view(inner.shape[2:]).cpu().numpy()
        concepts[stage] = ids.repeat(side, axis=0).repeat(side, axis=1)[:height, :width]
    return concepts
