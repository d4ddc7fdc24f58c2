"""PCL-v2 against its equations in plain loops, and its clusters."""

import math
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from densepath.core.errors import UserError
from densepath.methods import PCLV2, MoCoV2
from densepath.methods.pcl_v2 import concentration
from densepath.nets.backbones import build_backbone
from densepath.views.maker import ViewMaker

COUNTS = (6, 10)
IMAGES = range(40)  # all that it asks of its source is how many there are


@pytest.fixture
def batch(images):
    return replace(ViewMaker(PCLV2.views(), 64, seed=0)(images), index=torch.tensor([7, 31, 0, 18]), epoch=2.5, step=11)


@pytest.fixture
def clustered(make, batch):
    """A method that has seen features of all images."""

    def build(**options):
        method = make(PCLV2, **{"num_clusters": COUNTS, "num_negatives": 5, **options})
        method.prepare(IMAGES)
        method.on_features(torch.randn(40, 16, generator=torch.Generator().manual_seed(1)), batch)
        return method

    return build


def test_loss_is_the_equation(clustered, batch, whole_step):
    method, reference = clustered(), clustered()
    losses = whole_step(method, batch)
    q = F.normalize(reference.head(reference.backbone(batch["query"].pixels)[5].mean((2, 3))), dim=1).double().detach()
    drawn = batch.common_uniform(sum(COUNTS)).split(COUNTS)
    terms = []
    for number, count in enumerate(COUNTS):
        first = sum(COUNTS[:number])
        own = [int(reference.assignments[image, number]) - first for image in batch.index]
        others = sorted(set(range(count)) - set(own), key=lambda cluster: drawn[number][cluster])
        others = others[: min(5, count - 4)]
        assert len(others) == {6: 2, 10: 5}[count]
        prototype, phi = reference.prototypes[first:].double(), reference.concentrations[first:].double()
        for row, mine in zip(q, own, strict=True):
            above = math.exp(row @ prototype[mine] / phi[mine])
            terms.append(-math.log(above / (above + sum(math.exp(row @ prototype[c] / phi[c]) for c in others))))
    assert losses.terms["prototype_loss"].item() == pytest.approx(np.mean(terms), rel=1e-4)
    instance = MoCoV2.forward(reference, batch)  # whose networks have the same weights
    reference.after_step()
    torch.testing.assert_close(losses.terms["instance_loss"], instance.total)
    torch.testing.assert_close(losses.total, losses.terms["instance_loss"] + losses.terms["prototype_loss"])
    torch.testing.assert_close(method.queue.keys(), reference.queue.keys())


def test_negatives_are_others_at_each_step_and_none_is_a_positive(clustered, batch, monkeypatch):
    method, seen = clustered(num_negatives=3), []
    from densepath.methods import pcl_v2

    def spy(query, positive, negatives, temperature):
        seen.append(negatives)
        assert not torch.cdist(positive, negatives).min() < 1e-6
        assert torch.cdist(negatives, negatives).fill_diagonal_(1).min() > 1e-6
        return query.new_zeros(len(query))

    monkeypatch.setattr(pcl_v2, "info_nce", spy)
    q = torch.zeros(4, 16)
    for step in (1, 2):
        method.prototype_loss(q, replace(batch, step=step))
    assert [len(negatives) for negatives in seen] == [2, 3, 2, 3]
    assert not torch.equal(seen[1], seen[3])


def test_concentration_is_the_equation():
    generator = np.random.default_rng(0)
    labels = np.append(generator.integers(0, 9, 60), 10)  # none is in the cluster 9, and one in 10
    distances = generator.uniform(0.1, 1, 61)
    phi = np.full(11, np.nan)
    for cluster in range(11):
        inside = distances[labels == cluster]
        if len(inside) > 1:
            phi[cluster] = inside.sum() / (len(inside) * math.log(len(inside) + 10))
    phi[np.isnan(phi)] = np.nanmax(phi)
    phi = phi.clip(np.percentile(phi, 10), np.percentile(phi, 90))
    expected = 0.2 * phi / phi.mean()
    ours = concentration(torch.tensor(distances), torch.tensor(labels), 11, 0.2)
    np.testing.assert_allclose(ours, expected, rtol=1e-12)
    assert len(np.unique(expected)) > 5


def test_copies_of_an_image_do_not_divide_by_zero():
    labels = torch.arange(8).repeat(3)
    some = concentration(torch.where(labels < 6, 0.0, 0.5), labels, 8, 0.2)
    assert some.min() > 0 and some.mean().item() == pytest.approx(0.2)
    assert torch.equal(concentration(torch.zeros(24), labels, 8, 0.2), torch.full((8,), 0.2))


@pytest.mark.parametrize("standardize", [False, True])
def test_clusters_are_those_of_k_means_on_unit_vectors(make, batch, standardize):
    """Each image is nearest to the mean of its own cluster."""
    generator = torch.Generator().manual_seed(0)
    centers = torch.eye(16)[:4] + 1.0
    features = centers[torch.arange(40) % 4] * torch.rand(40, 1, generator=generator).add(0.5)
    features = features + 0.02 * torch.randn(40, 16, generator=generator)
    method = make(PCLV2, num_clusters=(12, 20), standardize=standardize)
    method.prepare(IMAGES)
    method.on_features(features, batch)
    points = features.double()
    if standardize:
        points = (points - points.mean(0)) / (points.var(0, unbiased=False) + 1e-5).sqrt()
    points = F.normalize(points, dim=1).numpy()
    first = 0
    for number, count in enumerate((12, 20)):
        labels = method.assignments[:, number].numpy() - first
        centroids = {cluster: points[labels == cluster].mean(0) for cluster in np.unique(labels)}
        distances = []
        for image in range(40):
            away = {cluster: np.linalg.norm(points[image] - centroid) for cluster, centroid in centroids.items()}
            assert min(away, key=away.__getitem__) == labels[image]
            distances.append(away[labels[image]])
            if not standardize:
                assert set(np.flatnonzero(labels == labels[image]) % 4) == {image % 4}  # only one group
        for cluster, centroid in centroids.items():
            unit = centroid / np.linalg.norm(centroid)
            np.testing.assert_allclose(method.prototypes[first + cluster], unit, atol=1e-5)
        phi = concentration(torch.tensor(distances), torch.tensor(labels), count, 0.2)
        np.testing.assert_allclose(method.concentrations[first : first + count], phi, rtol=1e-3)
        first += count


def test_the_warm_up_is_moco_and_clusters_are_asked_for_once_an_epoch(make, batch):
    method, reference = make(PCLV2, num_clusters=COUNTS, warmup=0.5), make(MoCoV2)
    method.prepare(IMAGES)
    early = replace(batch, progress=0.49)
    assert not method.wants_features(early)
    losses = method(early)
    torch.testing.assert_close(losses.total, reference(early).total)
    assert set(losses.terms) == {"instance_loss"}
    assert method.wants_features(batch)
    with pytest.raises(ValueError, match="must be passed to on_features"):
        method.before_step(batch)
    method.on_features(torch.randn(40, 16), batch)
    assert not method.wants_features(batch) and not method.wants_features(replace(batch, epoch=2.99))
    assert method.wants_features(replace(batch, epoch=3.0))
    assert set(method(batch).terms) == {"instance_loss", "prototype_loss"}
    held = method.eval()(batch)  # of held-out images, whose index is not that of a clustered image
    assert set(held.terms) == {"instance_loss"} and torch.equal(held.total, held.terms["instance_loss"])


def test_extracted_features_are_those_of_the_momentum_encoder(clustered, batch):
    method = clustered()
    with torch.no_grad():
        for parameter in method.key_head.parameters():
            parameter.mul_(1.5)
    method.eval()
    pixels = batch["query"].pixels
    expected = method.key_head(method.key_backbone(pixels)[5].mean((2, 3)))
    torch.testing.assert_close(method.extract_features(pixels), expected)
    assert not method.extract_features(pixels).requires_grad


def test_only_the_query_encoder_takes_a_gradient(clustered, batch):
    method = clustered()
    method(batch).total.backward()
    trained = (method.backbone, method.head)
    assert all(p.grad.any() for network in trained for p in network.parameters())
    assert not method.prototypes.requires_grad and all(p.grad is None for p in method.key_backbone.parameters())


def test_a_state_brings_the_clusters_and_their_epoch(clustered, make, batch):
    state = clustered().state_dict()
    for prepared in (True, False):  # a run that is resumed, and an export
        method = make(PCLV2, num_clusters=COUNTS)
        if prepared:
            method.prepare(IMAGES)
        method.load_state_dict(state)
        assert not method.wants_features(batch)
        assert all(torch.equal(value, state[name]) for name, value in method.state_dict().items())


def test_clusters_by_default_are_shares_of_the_images(make):
    method = make(PCLV2)
    assert method.prepare(range(80_000)).startswith("2500, 5000, 10000 clusters of 80,000 images")
    assert method.prototypes.shape == (17_500, 16) and method.assignments.shape == (80_000, 3)


def test_overfits_one_batch(clustered, batch, losses_on):
    method = clustered(backbone="test_resnet")
    history = losses_on(method, batch, steps=15, lr=0.05, queue=method.queue)
    assert history[-1] < 0.7 * history[0] and math.isfinite(history[-1])


def test_step_never_waits_for_the_device(clustered, images, monkeypatch):
    """On the meta device nothing has a value: whatever asks for one raises."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # unknown on this device
    method = clustered()
    batch = ViewMaker(PCLV2.views(), 64, seed=0)(replace(images, pixels=images.pixels.to("meta"), epoch=2.0))
    method.to("meta")
    method.before_step(batch)
    losses = method(batch)
    losses.total.backward()
    method.after_step()
    assert losses.total.device.type == "meta" and "prototype_loss" in losses.terms


@pytest.mark.parametrize("name", ["convnext_atto", "regnetx_002"])
def test_any_convnet_will_do(batch, name):
    method = PCLV2(build_backbone(name), num_clusters=COUNTS, queue_size=8)
    method.prepare(IMAGES)
    method.eval()
    method.on_features(torch.cat([method.extract_features(batch[view].pixels) for view in ("query", "key")] * 5), batch)
    method.train()
    method(batch).total.backward()
    assert all(p.grad is not None for p in method.parameters() if p.requires_grad)


def test_wrong_hyper_parameters_are_named(make, batch):
    with pytest.raises(UserError, match="two clusters or more, not 1"):
        make(PCLV2, num_clusters=(4, 1))
    with pytest.raises(UserError, match="at least one negative prototype, not 0"):
        make(PCLV2, num_negatives=0)
    with pytest.raises(UserError, match=r"share of the run, between 0 and 1, not 1\.5"):
        make(PCLV2, warmup=1.5)
    with pytest.raises(UserError, match="6, 21 clusters are too many for 40 images"):
        make(PCLV2, num_clusters=(6, 21)).prepare(IMAGES)
    method = make(PCLV2, num_clusters=(4, 10))
    method.prepare(IMAGES)
    with pytest.raises(UserError, match="4 clusters leave no negative prototype for a batch of 4 images"):
        method(replace(batch, progress=0.0))
