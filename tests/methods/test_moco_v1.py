"""MoCo-v1 against lightly's loss, and what sets it apart from MoCo-v2."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from lightly.loss import NTXentLoss
from method_checks import check

from densepath.core.errors import UserError
from densepath.methods import MoCoV1
from densepath.nets.backbones import build_backbone
from densepath.views.augment import Augment
from densepath.views.maker import ViewMaker


@pytest.fixture
def batch(images):
    return ViewMaker(MoCoV1.views(), 64, seed=0)(images)


def test_loss_is_that_of_lightly_on_a_linear_head_and_keys_join_the_queue(make, batch, whole_step):
    method, reference = make(MoCoV1), make(MoCoV1)
    losses = whole_step(method, batch)
    weight, bias = reference.head.weight, reference.head.bias
    # Both encoders are still equal.
    q = F.linear(reference.backbone(batch["query"].pixels)[5].mean((2, 3)), weight, bias)
    k = F.linear(reference.key_backbone(batch["key"].pixels)[5].mean((2, 3)), weight, bias).detach()
    criterion = NTXentLoss(temperature=0.07, memory_bank_size=(64, 16))
    criterion.memory_bank.bank = reference.queue.keys().clone()
    torch.testing.assert_close(losses.total, criterion(q, k))
    torch.testing.assert_close(method.queue.keys()[:4], F.normalize(k, dim=1))
    torch.testing.assert_close(method.queue.keys()[4:], reference.queue.keys()[4:])


def test_the_head_is_one_linear_layer_that_keys_follow(make, batch):
    method = make(MoCoV1)
    assert {name: tuple(p.shape) for name, p in method.head.named_parameters()} == {"weight": (16, 512), "bias": (16,)}
    assert method.head.weight.std().item() == pytest.approx((2 / 512) ** 0.5, rel=0.03) and not method.head.bias.any()
    before = method.key_head.network.weight.clone()
    with torch.no_grad():
        method.head.weight.add_(0.1)
    method.before_step(batch)
    method(batch).total.backward()
    torch.testing.assert_close(method.key_head.network.weight, before + 0.01)
    assert method.head.weight.grad.any() and method.key_head.network.weight.grad is None


def test_the_views_always_change_their_color_and_are_never_blurred():
    jitter = {"jitter": 1.0, "brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.4}
    expected = Augment(scale=(0.2, 1), grayscale=0.2, blur=0, flip=0.5, **jitter).random_view()
    assert MoCoV1.views() == {"query": expected, "key": expected}
    still = Augment(jitter=0)
    assert MoCoV1.views(still) == {"query": still.random_view(), "key": still.random_view()}


def test_step_never_waits_for_the_device(make, images, monkeypatch):
    """On the meta device nothing has a value: whatever asks for one raises."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # unknown on this device
    batch = ViewMaker(MoCoV1.views(), 64, seed=0)(replace(images, pixels=images.pixels.to("meta")))
    method = make(MoCoV1, group=2, standardize=True).to("meta")
    method.before_step(batch)
    losses = method(batch)
    losses.total.backward()
    method.after_step()
    assert losses.total.device.type == "meta"


def test_overfits_one_batch(make, batch, losses_on):
    method = make(MoCoV1, "test_resnet")
    history = losses_on(method, batch, steps=12, lr=0.03, queue=method.queue)
    assert history[-1] < 0.5 * history[0]


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "convnext_atto"])
def test_any_convnet_will_do(batch, name):
    method = MoCoV1(build_backbone(name), queue_size=8)
    method(batch).total.backward()
    assert method.exported_backbone().name == name
    assert all(p.grad is not None for p in method.parameters() if p.requires_grad)


def test_wrong_hyper_parameters_are_named(make):
    with pytest.raises(UserError, match="temperature must be positive, not -1"):
        make(MoCoV1, temperature=-1)
    with pytest.raises(UserError, match="a queue of 64 keys is smaller than a batch of 65 images"):
        check(make(MoCoV1), 96, 65)
