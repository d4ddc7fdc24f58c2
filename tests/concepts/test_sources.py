"""The concept sources on images with known regions."""

from dataclasses import replace

import pytest
import torch

from densepath.concepts.grid import GridConcepts
from densepath.concepts.kmeans import KMeansConcepts
from densepath.core.affine import identity
from densepath.core.errors import UserError
from densepath.nets.backbones import build_backbone
from densepath.views.view import Batch, View


def batch_of(pixels: torch.Tensor, **changes) -> Batch:
    view = View(pixels, identity(len(pixels)))
    batch = Batch({"reference": view}, torch.arange(len(pixels)), seed=0, step=0, epoch=0.0, progress=0.0)
    return replace(batch, **changes)


def stripes(size: int = 64) -> torch.Tensor:
    """Horizontal stripes on the left, vertical ones on the right: the same colors, different textures."""
    line = (torch.arange(size) // 2 % 2).float() * 2 - 1
    image = torch.cat((line.view(-1, 1).expand(-1, size // 2), line[: size // 2].expand(size, -1)), dim=1)
    return image.expand(2, 3, -1, -1).contiguous()


def test_kmeans_of_an_untrained_network_separates_textures():
    """Section 4.4 of the paper: with rich low-level patterns even random features cluster well."""
    encoder = build_backbone("resnet18").train()
    labels = KMeansConcepts(stage=2, num_concepts=2)(batch_of(stripes()), encoder).labels
    assert labels.shape == (2, 16, 16)
    inner = torch.cat((labels[:, 2:-2, 2:6], labels[:, 2:-2, 10:14]), dim=2)  # away from borders
    left, right = inner[..., :4], inner[..., 4:]
    for image in range(2):
        assert left[image].unique().numel() == 1 and right[image].unique().numel() == 1
        assert left[image, 0, 0] != right[image, 0, 0]


def test_kmeans_has_other_initial_clusters_in_each_epoch_and_equal_ones_within_it():
    encoder = build_backbone("resnet18").eval()
    source = KMeansConcepts(stage=3, num_concepts=6)
    pixels = torch.randn(2, 3, 64, 64)
    first = source(batch_of(pixels), encoder).labels
    assert torch.equal(first, source(batch_of(pixels, epoch=0.9), encoder).labels)
    assert not torch.equal(first, source(batch_of(pixels, epoch=1.0), encoder).labels)


def test_kmeans_counts_empty_clusters():
    """An encoder with two different feature vectors leaves two of four clusters empty."""

    def encoder(pixels: torch.Tensor, last: int) -> dict[int, torch.Tensor]:
        half = (torch.arange(4) < 2).float().expand(2, 1, 4, 4)
        return {last: torch.cat((half, 1 - half), dim=1)}

    found = KMeansConcepts(stage=4, num_concepts=4)(batch_of(torch.zeros(2, 3, 64, 64)), encoder)
    assert found.statistics["empty_clusters"] == 2
    assert (found.labels[:, :, :2] != found.labels[:, :, 2:]).all()


def test_kmeans_is_not_part_of_the_gradient():
    pixels = torch.randn(1, 3, 64, 64, requires_grad=True)
    assert not KMeansConcepts(4, 2)(batch_of(pixels), build_backbone("resnet18")).labels.requires_grad


def test_more_clusters_than_positions_are_refused_before_and_during_a_run():
    source, encoder = KMeansConcepts(stage=5, num_concepts=5), build_backbone("resnet18")
    with pytest.raises(UserError, match="5 concepts cannot be found at the 4 positions of stage f5"):
        source.check(encoder, (64, 64))
    with pytest.raises(UserError, match="5 concepts cannot be found at the 4 positions of stage f5"):
        source(batch_of(torch.randn(1, 3, 64, 64)), encoder)
    source.check(encoder, (65, 65))  # 65 pixels give 3 x 3 positions


@pytest.mark.parametrize("size", [1, 3, 5, 7])
def test_a_grid_has_each_concept_once(size):
    found = GridConcepts(size)(batch_of(torch.zeros(2, 3, 32, 32)), build_backbone("resnet18"))
    assert torch.equal(found.labels[1].flatten(), torch.arange(size * size))
