"""The vectors that Cellback and DiRL compare: means over regions, and over how these interact."""

from __future__ import annotations

from torch import Tensor

from densepath.core.regions import Regions
from densepath.methods.cell_prior import CellPrior
from densepath.nets.backbones import Backbone
from densepath.nets.backbones.transformer_parts import add_positions, embed_patches, require_transformer, run_blocks
from densepath.nets.disentangle import Disentangle
from densepath.views.view import Batch, View

# name -> (N, C), or (N, positions, C), and (N,) bool: the rows that exist; None for all
Vectors = dict[str, tuple[Tensor, Tensor | None]]


def region_vectors(
    prior: CellPrior, batch: Batch, crops: View, backbone: Backbone, block: Disentangle | None = None
) -> Vectors:
    """The vectors of crops, by name: f_c and f_b (Equation 3), and with a block also f_cc, f_bb, f_cb and f_bc.

    Args:
        prior: the regions.
        batch: the batch.
        crops: crops of one size.
        backbone: the encoder.
        block: the disentangle block; None for the vectors of regions only.
    """
    if block is None:
        features = backbone(crops.pixels)[backbone.deepest]
        return pooled(prior(batch, crops, tuple(features.shape[2:])), features, prior.names())
    model = backbone.net.model
    patches = embed_patches(model, crops.pixels)
    grid = (patches.shape[1], patches.shape[2])
    tokens = run_blocks(model, add_positions(model, patches))
    labels = prior(batch, crops, grid)
    features = model.norm(tokens)[:, model.num_prefix_tokens :]
    vectors = pooled(labels, _map(features, grid), prior.names())
    both = block(tokens[:, model.num_prefix_tokens :], labels.flatten(1))
    for names, interaction in zip(interaction_names(prior), both, strict=True):
        vectors |= pooled(labels, _map(interaction, grid), names)
    return vectors


def interaction_names(prior: CellPrior) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The names of the vectors of each region within itself, and between it and the others."""
    if prior.num_regions == 2:
        return ("cell_cell", "back_back"), ("cell_back", "back_cell")
    return tuple(f"{name}_within" for name in prior.names()), tuple(f"{name}_between" for name in prior.names())


def region_weights(prior: CellPrior, region: float, interaction: float | None) -> dict[str, float]:
    """The weight of the loss of each vector, by name (Equation 9); without interactions if theirs is None."""
    weights = dict.fromkeys(prior.names(), region)
    if interaction is None:
        return weights
    return weights | dict.fromkeys([name for names in interaction_names(prior) for name in names], interaction)


def make_block(backbone: Backbone, shared: bool) -> Disentangle:
    """The disentangle block for a vision transformer."""
    model = require_transformer(backbone, "dirl")
    return Disentangle(model.num_features, model.blocks[-1].attn.num_heads, shared)


def pooled(labels: Tensor, features: Tensor, names: tuple[str, ...]) -> Vectors:
    """The mean of the features (N, C, *grid) over each region of a label map (N, *grid), by the name of the region."""
    regions = Regions.of_labels(labels, len(names))
    vectors, present = regions.pool(features), regions.present()
    return {name: (vectors[:, number], present[:, number]) for number, name in enumerate(names)}


def _map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Tokens (N, n, C) as a map (N, C, h, w), a view of them."""
    return tokens.transpose(1, 2).unflatten(2, grid)


def flat(vectors: tuple[Tensor, Tensor | None]) -> tuple[Tensor, Tensor | None]:
    """Vectors of positions (N, positions, C) as (N * positions, C)."""
    return vectors[0].flatten(0, -2), vectors[1]
