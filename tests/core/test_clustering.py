"""Batched spherical k-means, compared with a plain loop and scikit-learn."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

from densepath.core import clustering
from densepath.core.clustering import kmeans, spherical_kmeans


def loop_kmeans(points: np.ndarray, start: np.ndarray, reseed: np.ndarray) -> tuple[np.ndarray, int]:
    """The equations for one image in float64."""
    points = points / np.linalg.norm(points, axis=1, keepdims=True)
    centroids = points[start].copy()
    for positions in reseed:
        labels = np.array([int(np.argmax([c @ p for c in centroids])) for p in points])
        empty = 0
        for k in range(len(centroids)):
            members = points[labels == k]
            if len(members):
                centroids[k] = members.mean(0) / np.linalg.norm(members.mean(0))
            else:
                centroids[k], empty = points[positions[k]], empty + 1
    return labels, empty


def test_equals_a_plain_loop():
    generator = torch.Generator().manual_seed(1)
    points = torch.randn(4, 30, 6, generator=generator, dtype=torch.float64)
    start = torch.randint(0, 30, (4, 5), generator=generator)
    start[0, 1] = start[0, 0]  # a repeated start leaves a cluster empty at first
    reseed = torch.randint(0, 30, (10, 4, 5), generator=generator)
    labels, empty = spherical_kmeans(points, start, reseed)
    for image in range(4):
        expected, count = loop_kmeans(points[image].numpy(), start[image].numpy(), reseed[:, image].numpy())
        np.testing.assert_array_equal(labels[image], expected)
        assert empty[image] == count


def test_finds_the_clusters_that_scikit_learn_finds():
    torch.manual_seed(0)
    directions = F.normalize(torch.randn(4, 16), dim=1)
    truth = torch.arange(80) % 4
    points = (directions[truth] + 0.05 * torch.randn(80, 16)).unsqueeze(0)
    labels, _ = spherical_kmeans(points, torch.tensor([[0, 1, 2, 3]]), torch.zeros(10, 1, 4, dtype=torch.int64))
    theirs = KMeans(4, n_init=5, random_state=0).fit_predict(F.normalize(points[0], dim=1))
    assert adjusted_rand_score(theirs, labels[0]) == 1.0


def test_fewer_distinct_points_than_clusters_leaves_clusters_empty():
    points = torch.eye(2).repeat_interleave(5, 0).unsqueeze(0)
    labels, empty = spherical_kmeans(points, torch.zeros(1, 4, dtype=torch.int64), torch.full((10, 1, 4), 9))
    assert empty.item() == 2 and len(labels.unique()) == 2


def test_images_are_clustered_independently():
    points = torch.randn(3, 20, 8)
    start, reseed = torch.randint(0, 20, (3, 4)), torch.randint(0, 20, (10, 3, 4))
    together, _ = spherical_kmeans(points, start, reseed)
    alone, _ = spherical_kmeans(points[1:2], start[1:2], reseed[:, 1:2])
    assert torch.equal(together[1], alone[0])


def test_kmeans_of_one_set_equals_scikit_learn(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(300, 5, generator=generator, dtype=torch.float64)
    order = torch.randperm(300, generator=generator)
    for iterations in (1, 4, 30):
        oracle = KMeans(12, init=points[order[:12]].numpy(), n_init=1, max_iter=iterations, tol=0).fit(points.numpy())
        for distances in (2**24, 100):  # at once, and a few points at a time
            monkeypatch.setattr(clustering, "_DISTANCES", distances)
            centroids, labels = kmeans(points, order, 12, iterations)
            np.testing.assert_allclose(centroids, oracle.cluster_centers_, atol=1e-12)
            np.testing.assert_array_equal(labels, oracle.labels_)


def test_a_centroid_without_points_is_moved_to_one_of_them():
    points = torch.tensor([0.0, 0.0, 1.0, 5.0, 5.2]).unsqueeze(1)
    order = torch.tensor([0, 1, 3, 4, 2])  # two centroids start at the same place: the second is left without points
    centroids, labels = kmeans(points, order, 3, 1)
    torch.testing.assert_close(centroids.flatten(), torch.tensor([1 / 3, 1.0, 5.1]))  # the fifth of the order
    assert labels.tolist() == [0, 0, 1, 2, 2]
    assert kmeans(points, order, 3, 2)[0].flatten().tolist() == pytest.approx([0, 1, 5.1])
