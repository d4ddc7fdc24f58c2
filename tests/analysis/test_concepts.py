"""Concepts on a tile follow its content."""

from __future__ import annotations

import numpy as np
import pytest

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
    assert concepts.shape == (128, 128)
    assert not set(concepts[:, :52].flat) & set(concepts[:, 76:].flat)


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


@pytest.mark.parametrize(("size", "edge"), [((160, 141), 80), ((150, 130), 64)])
def test_concepts_lie_where_they_are_in_tiles_of_any_size(size: tuple[int, int], edge: int) -> None:
    tile = np.random.default_rng(0).integers(180, 255, (*size, 3), dtype=np.uint8)
    tile[:, :edge] //= 4
    found = find_concepts(build_backbone("resnet18"), tile, stages=(2, 5), num_concepts=2)[2]
    assert found.shape == size
    dark = found == found[0, 0]
    assert dark[:, : edge - 12].all() and not dark[:, edge + 12 :].any()


@pytest.mark.parametrize("patch", [14, 16])
def test_a_transformer_shows_the_concepts_of_its_tokens(patch: int) -> None:
    backbone = build_backbone(f"test_vit(patch_size={patch})")
    tile = two_halves(16 * patch)
    found = find_concepts(backbone, tile, stages=(4,), num_concepts=4)[4]
    tokens = found[::patch, ::patch]
    assert tokens.shape == (16, 16) and (tokens.repeat(patch, 0).repeat(patch, 1) == found).all()
    assert not set(tokens[:, :8].flat) & set(tokens[:, 8:].flat)
