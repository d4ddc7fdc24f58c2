"""MoCo-v2 against its equation, step by step."""

import math

import pytest
import torch
import torch.nn.functional as F
from method_checks import check
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from densepath.core.errors import UserError
from densepath.core.random import shuffled
from densepath.methods import MoCoV2
from densepath.nets.backbones import build_backbone
from densepath.nets.norms import group_batch_norm, plain_batch_norm, synchronize_batch_norm


def test_loss_is_the_equation_and_keys_join_the_queue(make, batch, whole_step):
    method, reference = make(MoCoV2), make(MoCoV2)
    losses = whole_step(method, batch)
    # A second copy of the same weights, by the book; both encoders are still equal.
    q = F.normalize(reference.head(reference.backbone(batch["query"].pixels)[5].mean((2, 3))), dim=1)
    k = F.normalize(reference.key_head(reference.key_backbone(batch["key"].pixels)[5].mean((2, 3))), dim=1)
    queue = reference.queue.keys()
    logits = torch.cat(((q * k).sum(1, keepdim=True), q @ queue.T), dim=1) / 0.2
    torch.testing.assert_close(losses.total, F.cross_entropy(logits, torch.zeros(4, dtype=torch.long)))
    torch.testing.assert_close(method.queue.keys()[:4], k)
    torch.testing.assert_close(method.queue.keys()[4:], queue[4:])
    assert losses.terms["instance_loss"] == losses.total


def test_key_encoder_follows_before_it_encodes_and_takes_no_gradient(make, batch):
    method = make(MoCoV2)
    with torch.no_grad():
        before = method.key_head.network.state_dict()
        before = {name: value.clone() for name, value in before.items()}
        for parameter in method.head.parameters():
            parameter.add_(0.1)
    method.before_step(batch)
    method(batch).total.backward()
    for name, value in method.key_head.network.state_dict().items():
        torch.testing.assert_close(value, before[name] + 0.1 * (method.head.state_dict()[name] - before[name]))
    assert all(p.grad is not None for p in (*method.backbone.parameters(), *method.head.parameters()))
    assert all(p.grad is None for p in (*method.key_backbone.parameters(), *method.key_head.parameters()))


def test_batch_norm_statistics_are_each_encoders_own(make, batch):
    method = make(MoCoV2)
    method(batch)
    query = method.backbone.state_dict()["net.bn1.running_mean"]
    key = method.key_backbone.network.state_dict()["net.bn1.running_mean"]
    assert not torch.equal(query, key) and key.any()


def test_overfits_one_batch(make, batch, losses_on, whole_step):
    """Against keys of its own images, which are as near as the positive at first: the loss begins at chance."""
    method = make(MoCoV2, "test_resnet")
    whole_step(method, batch)
    keys = method.queue.keys()
    keys.copy_(keys[:4].repeat(16, 1))
    history = losses_on(method, batch, steps=20, lr=0.1, queue=method.queue)
    assert history[0] == pytest.approx(math.log(1 + 64), rel=0.2)
    assert history[-1] < 0.5 * history[0]


def test_wrong_hyper_parameters_are_named(make):
    with pytest.raises(UserError, match="temperature must be positive"):
        make(MoCoV2, temperature=0)
    with pytest.raises(UserError, match="momentum must be between"):
        make(MoCoV2, momentum=1.5)
    with pytest.raises(
        UserError, match=r"a queue of 64 keys is smaller than a batch of 65 images; use --method\.queue_size 65"
    ):
        check(make(MoCoV2), 96, 65)


def test_each_group_of_a_batch_is_normalized_by_itself(make, batch, whole_step):
    method, reference = make(MoCoV2, group=2), make(MoCoV2)
    whole_step(method, batch)
    order = shuffled(4, batch.seed, batch.step)
    assert not torch.equal(order.view(2, 2).sort(1).values, torch.arange(4).view(2, 2))  # keys meet other images
    keys = torch.empty(4, 16)
    for group in order.view(2, 2):
        features = reference.key_backbone(batch["key"].pixels[group])[5]
        keys[group] = F.normalize(reference.key_head(features.mean((2, 3))), dim=1)
    torch.testing.assert_close(method.queue.keys()[:4], keys)


def test_without_shuffling_keys_are_encoded_among_the_images_of_their_queries(make, batch, whole_step):
    method, reference = make(MoCoV2, group=2, shuffle=False), make(MoCoV2)
    whole_step(method, batch)
    features = [reference.key_backbone(batch["key"].pixels[rows])[5].mean((2, 3)) for rows in (slice(2), slice(2, 4))]
    torch.testing.assert_close(method.queue.keys()[:4], F.normalize(reference.key_head(torch.cat(features)), dim=1))


@pytest.mark.parametrize("convert", [lambda net: group_batch_norm(net, 2), synchronize_batch_norm])
def test_a_trained_backbone_gets_its_plain_batch_norms_back(make, batch, convert):
    method, plain = make(MoCoV2), make(MoCoV2)
    convert(method)
    assert plain_batch_norm(plain.exported_backbone()) is plain.backbone
    kept = plain_batch_norm(method.exported_backbone())
    assert {type(norm) for norm in kept.modules() if isinstance(norm, _BatchNorm)} == {nn.BatchNorm2d}
    assert {type(norm) for norm in method.backbone.modules() if isinstance(norm, _BatchNorm)} != {nn.BatchNorm2d}
    pixels = batch["query"].pixels[:3]
    assert torch.equal(kept(pixels)[5], plain.backbone(pixels)[5])  # in training, too, and for any batch
    assert list(method.state_dict()) == list(plain.state_dict())
    for one, other in zip(kept.state_dict().values(), method.backbone.state_dict().values(), strict=True):
        assert one.data_ptr() == other.data_ptr()


def test_any_convnet_will_do(batch):
    method = MoCoV2(build_backbone("mobilenetv3_small_050"), queue_size=8)
    method(batch).total.backward()
    assert method.exported_backbone().name == "mobilenetv3_small_050"
