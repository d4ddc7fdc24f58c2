"""Neighborhoods of cells as concepts."""

import torch

from densepath.concepts.cells import POSITIONS, CellConcepts, neighborhoods
from densepath.core.affine import from_box, identity
from densepath.core.regions import point_counts
from densepath.views.view import Batch, View


def batch_of(points: torch.Tensor, maps: torch.Tensor) -> Batch:
    extras = {"cells": torch.cat((points, torch.zeros_like(points[..., :1])), dim=2)}
    views = {"reference": View(torch.empty(len(points), 3, 8, 8), maps)}
    return Batch(views, torch.arange(len(points)), 0, 0, 0.0, 0.5, extras)


def test_separate_groups_are_separate_concepts_and_the_rest_is_background():
    generator = torch.Generator().manual_seed(0)
    centers = torch.tensor([[-0.7, -0.7], [0.7, -0.6], [0.0, 0.7]])
    points = centers.repeat_interleave(20, 0)[None] + torch.rand(1, 60, 2, generator=generator) * 0.2 - 0.1
    points = torch.cat((points, torch.full((1, 5, 2), torch.nan)), dim=1)
    found = CellConcepts(3)(batch_of(points, identity(1)), None)
    held = point_counts(points, (POSITIONS, POSITIONS))[0] > 0
    assert torch.equal(found.labels[0] == 3, ~held)
    for group in range(3):
        own = point_counts(points[:, group * 20 : group * 20 + 20], (POSITIONS, POSITIONS))[0] > 0
        assert len(found.labels[0][own].unique()) == 1
    assert found.labels[0][held].unique().tolist() == [0, 1, 2]


def test_one_neighborhood_is_dirls_prior_in_the_reference_view():
    points = torch.tensor([[[0.1, 0.1], [0.9, 0.9]]])
    view = from_box(torch.tensor([[0.0, 0.0]]), torch.tensor([[0.5, 0.5]]))
    found = CellConcepts(1)(batch_of(points, view), None)
    cellular = (found.labels[0] == 0).nonzero()
    assert cellular.tolist() == [[int(0.2 * POSITIONS)] * 2]  # (0.1, 0.1) lies at a fifth of the view, 0.9 outside
    assert torch.equal(found.map, view) and CellConcepts(1).num_concepts == 2


def test_images_without_cells_are_background_and_few_cells_are_few_concepts():
    marked = torch.zeros(3, 6, 6, dtype=torch.bool)
    marked[1, 2, 2] = True
    marked[2, 0, 0] = marked[2, 5, 5] = True
    labels = neighborhoods(marked, 4)
    assert (labels[0] == 4).all() and (labels[1] != 4).sum() == 1
    assert labels[2, 0, 0] != labels[2, 5, 5] and (labels[2] != 4).sum() == 2
    assert torch.equal(neighborhoods(marked[1:], 4), labels[1:])  # independent of the rest of the batch


def test_neighborhoods_are_the_same_under_autocast():
    marked = torch.ones(1, POSITIONS, POSITIONS, dtype=torch.bool)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = neighborhoods(marked, 8)
    assert torch.equal(mixed, neighborhoods(marked, 8))
