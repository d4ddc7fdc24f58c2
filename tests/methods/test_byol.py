"""BYOL against lightly's loss and schedule, and its target network."""

from dataclasses import replace

import pytest
import torch
from lightly.loss import NegativeCosineSimilarity
from lightly.utils.scheduler import cosine_schedule
from torch import nn

from densepath.core.errors import UserError
from densepath.methods import BYOL
from densepath.nets.backbones import build_backbone
from densepath.views.augment import Augment
from densepath.views.maker import ViewMaker


@pytest.fixture
def batch(images):
    return ViewMaker(BYOL.views(), 64, seed=0)(images)


def test_loss_is_that_of_lightly_for_both_views(make, batch):
    method, reference = make(BYOL), make(BYOL)
    for each in (method, reference):  # now online and target network differ
        with torch.no_grad():
            next(each.backbone.parameters()).neg_()
            each.projector.fc2.weight.neg_()
    method.before_step(replace(batch, progress=1.0))
    losses = method(replace(batch, progress=1.0))  # and the target stays as it is
    predictions, targets = {}, {}
    for name in ("first", "second"):
        pixels = batch[name].pixels
        predictions[name] = reference.predictor(reference.projector(reference.backbone(pixels)[5].mean((2, 3))))
        targets[name] = reference.target_projector(reference.target_backbone(pixels)[5].mean((2, 3)))
    criterion = NegativeCosineSimilarity()
    pairs = (("first", "second"), ("second", "first"))
    similarities = [criterion(predictions[one], targets[other]) for one, other in pairs]
    torch.testing.assert_close(losses.total, 4 + 2 * sum(similarities))
    unit = {name: nn.functional.normalize(p, dim=1) for name, p in predictions.items()}
    goal = {name: nn.functional.normalize(t, dim=1) for name, t in targets.items()}
    squares = (unit["first"] - goal["second"]).square().sum(1) + (unit["second"] - goal["first"]).square().sum(1)
    torch.testing.assert_close(losses.total, squares.mean())
    assert losses.terms["prediction_loss"] == losses.total


@pytest.mark.parametrize("step", [0, 3, 9])
def test_the_target_follows_ever_more_slowly(make, batch, step):
    """The momentum is that of lightly's schedule, which reaches its end in the last of its steps."""
    method = make(BYOL)
    momentum = cosine_schedule(step, 11, 0.9, 1.0)
    before = {name: value.clone() for name, value in method.target_projector.network.named_parameters()}
    with torch.no_grad():
        for parameter in method.projector.parameters():
            parameter.add_(0.1)
        for parameter in method.backbone.parameters():
            parameter.add_(0.01)
    backbone = next(method.target_backbone.parameters()).clone()
    method.before_step(replace(batch, progress=step / 10))
    for name, value in method.target_projector.network.named_parameters():
        torch.testing.assert_close(value, before[name] + 0.1 * (1 - momentum), rtol=0, atol=1e-6)
    expected = backbone + 0.01 * (1 - momentum)
    torch.testing.assert_close(next(method.target_backbone.parameters()), expected, rtol=0, atol=1e-6)


def test_a_target_at_the_end_of_the_run_stays(make, batch):
    method = make(BYOL)
    before = [p.clone() for p in method.target_projector.parameters()]
    with torch.no_grad():
        for parameter in method.projector.parameters():
            parameter.add_(0.1)
    method.before_step(replace(batch, progress=1.0))
    assert all(torch.equal(p, old) for p, old in zip(method.target_projector.parameters(), before, strict=True))


def test_only_the_online_network_takes_a_gradient(make, batch):
    method = make(BYOL)
    method(batch).total.backward()
    online = (method.backbone, method.projector, method.predictor)
    assert all(p.grad.any() for network in online for p in network.parameters())
    target = (method.target_backbone, method.target_projector)
    assert all(p.grad is None and not p.requires_grad for network in target for p in network.parameters())


def test_the_predictor_begins_small_and_only_what_a_norm_follows_lacks_a_bias(make):
    method = make(BYOL, hidden_dim=256, dim=128)
    for layer in (method.predictor.fc1, method.predictor.fc2):
        assert layer.weight.std().item() == pytest.approx(0.01, rel=0.02)
    for head in (method.projector, method.predictor):
        assert head.fc1.bias is None and not head.fc2.bias.any()
        assert isinstance(head.norm2, nn.Identity)
    assert method.projector.fc1.weight.std().item() == pytest.approx((2 / 512) ** 0.5, rel=0.02)


def test_the_two_views_are_those_of_the_paper():
    views = BYOL.views()
    color = {"jitter": 0.8, "brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1, "grayscale": 0.2}
    both = Augment(scale=(0.08, 1), interpolation="bicubic", blur_sigma=(0.1, 2), **color)
    assert views["first"] == replace(both, blur=1.0, solarize=0.0).random_view()
    assert views["second"] == replace(both, blur=0.1, solarize=0.2).random_view()
    still = Augment(jitter=0)
    assert BYOL.views(still) == {"first": still.random_view(), "second": still.random_view()}


def test_groups_have_batch_norms_of_their_own_in_the_heads_too(make, batch):
    whole, reference = make(BYOL, group=2), make(BYOL)
    first, second = batch["first"].pixels, batch["second"].pixels
    parts = [reference.distance(first[part], second[part]) for part in (slice(2), slice(2, 4))]
    torch.testing.assert_close(whole.distance(first, second), torch.stack(parts).mean())


def test_step_never_waits_for_the_device(make, images):
    """On the meta device nothing has a value: whatever asks for one raises."""
    batch = ViewMaker(BYOL.views(), 64, seed=0)(replace(images, pixels=images.pixels.to("meta")))
    method = make(BYOL, group=2).to("meta")
    method.before_step(batch)
    losses = method(batch)
    losses.total.backward()
    method.after_step()
    assert losses.total.device.type == "meta"


def test_overfits_one_batch(make, batch, losses_on):
    """A target that stands still is met: the loss falls to a fraction."""
    method, batch = make(BYOL, "test_resnet"), replace(batch, progress=1.0)
    history = losses_on(method, batch, steps=16, lr=0.02)
    assert history[-1] < 0.4 * history[0]


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "convnext_atto"])
def test_any_convnet_will_do(batch, name):
    method = BYOL(build_backbone(name))
    method(batch).total.backward()
    assert method.exported_backbone().name == name
    assert all(p.grad is not None for p in method.parameters() if p.requires_grad)


def test_wrong_hyper_parameters_are_named(make):
    with pytest.raises(UserError, match=r"momentum must be between 0 and 1, not 1\.5"):
        make(BYOL, momentum=1.5)
