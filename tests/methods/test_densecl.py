"""DenseCL against lightly's parts, against a plain loop over positions in float64, and its edge cases."""

from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightly.loss import NTXentLoss
from lightly.models.utils import select_most_similar
from method_checks import check

from densepath.core.affine import from_box
from densepath.core.errors import UserError
from densepath.methods import DenseCL, MoCoV2
from densepath.methods.densecl import most_similar
from densepath.nets.backbones import build_backbone
from densepath.views.maker import ViewMaker
from densepath.views.view import View


def positions(x):
    """(B, C, h, w) as (B, positions, C)."""
    return x.flatten(2).transpose(1, 2)


def contrast(negatives):
    """lightly's loss with these negatives (M, D)."""
    criterion = NTXentLoss(temperature=0.2, memory_bank_size=tuple(negatives.shape))
    criterion.memory_bank.bank = negatives.clone()  # lightly writes its keys into it
    return criterion


def test_losses_are_those_of_lightly_and_each_key_joins_its_queue_as_one_vector(make, batch, whole_step):
    method, reference = make(DenseCL), make(DenseCL)
    losses = whole_step(method, batch)
    query, key = reference.backbone(batch["query"].pixels)[5], reference.key_backbone(batch["key"].pixels)[5]
    k = positions(reference.key_dense_head(key))
    positive = select_most_similar(positions(query), positions(key), k).flatten(0, 1)
    dense = contrast(reference.dense_queue.keys())(positions(reference.dense_head(query)).flatten(0, 1), positive)
    torch.testing.assert_close(losses.terms["dense_loss"], dense.detach())
    instance = contrast(reference.queue.keys())(
        reference.head(query.mean((2, 3))), reference.key_head(key.mean((2, 3)))
    )
    torch.testing.assert_close(losses.terms["instance_loss"], instance.detach())
    torch.testing.assert_close(losses.total, (instance + dense) / 2)
    torch.testing.assert_close(method.dense_queue.keys()[:4], F.normalize(k.mean(1), dim=1))
    torch.testing.assert_close(method.dense_queue.keys()[4:], reference.dense_queue.keys()[4:])
    assert (int(method.dense_queue.pointer), int(method.queue.pointer)) == (4, 4)


def taps(scale, shift, size):
    """For each of ``size`` output positions of an axis, the weights of the input's positions; zero outside."""
    rows = []
    for i in range(size):
        place = scale * ((2 * i + 1) / size - 1) + shift
        weights = np.array(
            [1 - abs((2 * j + 1) / size - 1 - place) * size / 2 / max(1, abs(scale)) for j in range(size)]
        )
        rows.append(weights.clip(0) / weights.clip(0).sum() if abs(place) <= 1 else None)
    return rows


def by_the_book(method, batch):
    """L_r of exactly matched positions and how many these are; loops, float64, the method's own networks."""
    q = method.dense_head(method.backbone(batch["query"].pixels)[5]).double().numpy(force=True)
    k = method.key_dense_head(method.key_backbone(batch["key"].pixels)[5]).double().numpy(force=True)
    negatives = method.dense_queue.keys().double().numpy(force=True)
    size, losses = q.shape[2], []
    for image in range(len(q)):
        to_image, of_image = (batch[name].map[image].double().numpy() for name in ("query", "key"))
        # A query coordinate is taken to the image, x -> a x + b, and on to the key, y -> (y - d) / c.
        axes = [(to_image[i, i] / of_image[i, i], (to_image[i, 2] - of_image[i, 2]) / of_image[i, i]) for i in (0, 1)]
        across, down = (taps(*axis, size) for axis in axes)
        for row, column in np.ndindex(size, size):
            if across[column] is None or down[row] is None:
                continue
            positive = k[image] @ across[column] @ down[row]
            own = q[image, :, row, column]
            own, positive = own / np.linalg.norm(own), positive / np.linalg.norm(positive)
            logits = np.concatenate(([own @ positive], negatives @ own)) / method.temperature
            losses.append(np.log(np.exp(logits).sum()) - logits[0])
    return float(np.mean(losses)), len(losses)


def test_exactly_matched_positions_give_the_equation(make, batch):
    losses = make(DenseCL, match="geometry")(batch)
    expected, count = by_the_book(make(DenseCL, match="geometry"), batch)
    assert losses.terms["dense_loss"].item() == pytest.approx(expected, rel=1e-5)
    assert losses.statistics["matched_positions"].item() == pytest.approx(count / 36)
    assert 4 < count < 36


def flipped(view):
    mirror = torch.tensor([[[-1.0, 0, 0], [0, 1, 0]]])
    return View(view.pixels.flip(-1), torch.cat((view.map[..., :2] @ mirror[..., :2], view.map[..., 2:]), -1))


def test_a_flipped_view_is_matched_with_its_mirror_image(make, batch):
    method = make(DenseCL, match="geometry")
    same = replace(batch, views={"query": batch["query"], "key": flipped(batch["query"])})
    k = torch.randn(4, 9, 16)
    positive, valid = method.sample_key(same, k, (3, 3))
    torch.testing.assert_close(positive, k.unflatten(1, (3, 3)).flip(2).flatten(1, 2))
    assert valid.all()


def test_features_find_their_own_copy_wherever_it_was_moved_and_however_it_was_scaled():
    features, places = torch.randn(5, 8, 9), torch.stack([torch.randperm(9) for _ in range(5)])
    moved = features.gather(2, places.unsqueeze(1).expand_as(features)) * (1 + 9 * torch.rand(5, 1, 9))
    assert torch.equal(most_similar(features.view(5, 8, 3, 3), moved.view(5, 8, 3, 3)), places.argsort(1))


def test_views_without_a_common_position_give_no_dense_loss(make, batch):
    apart = {
        "query": replace(batch["query"], map=from_box(-torch.ones(4, 2), torch.zeros(4, 2))),
        "key": replace(batch["key"], map=from_box(torch.zeros(4, 2), torch.ones(4, 2))),
    }
    method = make(DenseCL, match="geometry")
    losses = method(replace(batch, views=apart))
    losses.total.backward()
    assert losses.terms["dense_loss"] == 0 and losses.statistics["matched_positions"] == 0
    assert not any(p.grad.any() for p in method.dense_head.parameters())
    assert all(torch.isfinite(p.grad).all() and p.grad.any() for p in method.head.parameters())
    method.after_step()
    assert int(method.dense_queue.pointer) == 4  # keys are keys, whatever their queries are


def test_key_heads_follow_and_only_queries_take_a_gradient(make, batch):
    for match in ("features", "geometry"):
        method = make(DenseCL, match=match)
        before = {name: value.clone() for name, value in method.key_dense_head.network.state_dict().items()}
        with torch.no_grad():
            for parameter in method.dense_head.parameters():
                parameter.add_(0.1)
        method.before_step(batch)
        method(batch).total.backward()
        after = method.dense_head.state_dict()
        for name, value in method.key_dense_head.network.state_dict().items():
            torch.testing.assert_close(value, before[name] + 0.1 * (after[name] - before[name]))
        slow = (method.key_backbone, method.key_head, method.key_dense_head)
        assert all(p.grad is None for network in slow for p in network.parameters())
        fast = (method.backbone, method.head, method.dense_head)
        assert all(p.grad.any() for network in fast for p in network.parameters())


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_lambda_weighs_positions_against_images(make, batch, weight):
    losses, moco = make(DenseCL, dense_weight=weight)(batch), make(MoCoV2)(batch)
    instance, dense = losses.terms["instance_loss"], losses.terms["dense_loss"]
    torch.testing.assert_close(losses.total, weight * dense + (1 - weight) * instance)
    torch.testing.assert_close(instance, moco.total.detach())


def test_standardized_positions_have_mean_zero_and_variance_one(make, batch):
    method = make(DenseCL, standardize=True)
    for x in method.project_positions(*method.encode(batch)):
        variance, mean = torch.var_mean(x.flatten(0, 1), 0, correction=0)
        torch.testing.assert_close(mean, torch.zeros(16), atol=1e-5, rtol=0)
        torch.testing.assert_close(variance, torch.ones(16), atol=1e-2, rtol=0)


@pytest.mark.parametrize("match", ["features", "geometry"])
def test_step_never_waits_for_the_device(make, images, monkeypatch, match):
    """On the meta device nothing has a value: whatever asks for one raises."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # unknown on this device
    batch = ViewMaker(DenseCL.views(), 96, seed=0)(replace(images, pixels=images.pixels.to("meta")))
    method = make(DenseCL, group=2, match=match, standardize=True).to("meta")
    method.before_step(batch)
    losses = method(batch)
    losses.total.backward()
    method.after_step()
    assert losses.total.device.type == "meta"


@pytest.mark.parametrize("match", ["features", "geometry"])
def test_overfits_one_batch(make, batch, losses_on, match):
    method = make(DenseCL, "test_resnet", match=match, dense_weight=1.0)
    history = losses_on(method, batch, steps=12, lr=0.1, queue=method.dense_queue)
    assert history[-1] < 0.7 * history[0]


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "convnext_atto"])
def test_any_convnet_will_do(batch, name):
    method = DenseCL(build_backbone(name), queue_size=8)
    method(batch).total.backward()
    assert method.exported_backbone().name == name
    assert all(p.grad is not None for p in method.parameters() if p.requires_grad)


def test_wrong_hyper_parameters_are_named(make):
    with pytest.raises(UserError, match="unknown match 'luck'; there are: features, geometry"):
        make(DenseCL, match="luck")
    with pytest.raises(UserError, match="dense weight must be between 0 and 1, not 2"):
        make(DenseCL, dense_weight=2)
    with pytest.raises(UserError, match="at least one channel, not 0"):
        make(DenseCL, hidden_dim=0)
    with pytest.raises(UserError, match="a queue of 64 keys is smaller than a batch of 65 images"):
        check(make(DenseCL), 96, 65)
