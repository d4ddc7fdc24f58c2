"""Concepts on a tile follow its content."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from densepath.analysis.concepts import find_concepts
from densepath.core.errors import UserError
from densepath.nets.backbones import build_backbone


def two_halves(size: int = 128) -> np.ndarray:
    """Dark stripes on the left, bright noise on the right."""
    rng = np.random.default_rng(0)
    tile = rng.integers(180, 255, (size, size, 3), dtype=np.uint8)
    tile[:, : size // 2] //= 4
    return tile


def test_two_tissues_share_no_concept_away_from_their_border() -> None:
    concepts = find_concepts(build_backbone("resnet18"), two_halves(), stages=(2,), num_concepts=4)[2]
    assert concepts.shape == (32, 32)
    assert not set(concepts[:, :13].flat) & set(concepts[:, 19:].flat)


def test_the_border_of_a_tile_does_not_become_a_concept() -> None:
    """A constant tile has the same features everywhere, so it has one cluster."""
    tile = np.full((160, 128, 3), (200, 120, 180), np.uint8)
    concepts = find_concepts(build_backbone("resnet18"), tile, stages=(2, 3), num_concepts=4)
    assert {stage: len(np.unique(labels)) for stage, labels in concepts.items()} == {2: 1, 3: 1}


def test_stages_are_clustered_independently_and_reproducibly() -> None:
    backbone, tile = build_backbone("resnet18").train(), two_halves()
    together = find_concepts(backbone, tile, stages=(2, 3), seed=1)
    assert np.array_equal(together[2], find_concepts(backbone, tile, stages=(2,), seed=1)[2])
    assert not np.array_equal(together[2], find_concepts(backbone, tile, stages=(2,), seed=2)[2])
    assert backbone.training


def test_what_cannot_be_clustered_is_refused() -> None:
    backbone = build_backbone("resnet18")
    with pytest.raises(UserError, match="use fewer"):
        find_concepts(backbone, two_halves(), stages=(5,), num_concepts=17)
    with pytest.raises(UserError, match="too small"):
        find_concepts(backbone, two_halves(64), stages=(3,))
    with pytest.raises(UserError, match="no stage f6"):
        find_concepts(backbone, two_halves(), stages=(6,))


def test_a_tile_with_odd_sides_is_cropped() -> None:
    torch.manual_seed(1)
    tile = np.pad(two_halves(), ((0, 5), (0, 3), (0, 0)))
    backbone = build_backbone("resnet18")
    padded, whole = (find_concepts(backbone, t, stages=(3,))[3] for t in (tile, two_halves()))
    assert np.array_equal(padded, whole)


def test_a_transformer_shows_the_concepts_of_its_tokens() -> None:
    concepts = find_concepts(build_backbone("test_vit"), two_halves(), stages=(4,), num_concepts=4)[4]
    assert concepts.shape == (8, 8)
    assert not set(concepts[:, :4].flat) & set(concepts[:, 4:].flat)
