"""SimCLR against lightly's loss, and its batch norms."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from lightly.loss import NTXentLoss
from method_checks import check
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from densepath.core.errors import UserError
from densepath.core.losses import nt_xent
from densepath.methods import SimCLR
from densepath.nets.backbones import build_backbone
from densepath.training.optimizers import Optimizer, parameter_groups
from densepath.views.augment import Augment
from densepath.views.maker import ViewMaker


@pytest.fixture
def batch(images):
    return ViewMaker(SimCLR.views(), 64, seed=0)(images)


def test_loss_is_that_of_lightly_on_embeddings_of_both_views_in_one_batch(make, batch):
    method, reference = make(SimCLR), make(SimCLR)
    losses = method(batch)
    pixels = torch.cat((batch["first"].pixels, batch["second"].pixels))
    z = reference.head(reference.backbone(pixels)[5].mean((2, 3)))
    torch.testing.assert_close(losses.total, NTXentLoss(temperature=0.1)(*z.split(4)))
    assert losses.terms["instance_loss"] == losses.total


def test_nt_xent_and_its_gradient_are_the_equation():
    first, second = (torch.nn.functional.normalize(torch.randn(5, 7).double(), dim=1) for _ in range(2))
    views = torch.cat((first, second)).requires_grad_()
    losses = []
    for i in range(10):
        others = torch.stack([views[i] @ views[k] / 0.3 for k in range(10) if k != i])
        losses.append(-(views[i] @ views[(i + 5) % 10] / 0.3 - others.exp().sum().log()))
    expected = torch.stack(losses).mean()
    ours = nt_xent(*views.split(5), 0.3)
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(torch.autograd.grad(ours, views), torch.autograd.grad(expected, views))


def test_the_head_is_two_linear_layers_with_batch_norms_and_no_bias(make):
    head = make(SimCLR).head
    x = torch.randn(6, 512)
    hidden = nn.functional.batch_norm(x @ head.fc1.weight.T, None, None, training=True).relu()
    expected = nn.functional.batch_norm(hidden @ head.fc2.weight.T, None, None, training=True)
    torch.testing.assert_close(head(x), expected)
    assert sorted(dict(head.named_parameters())) == [
        *("fc1.weight", "fc2.weight", "norm1.bias", "norm1.weight", "norm2.bias", "norm2.weight"),
    ]


def test_a_group_of_batch_norms_is_both_views_of_its_images(make, batch):
    method, reference = make(SimCLR, group=2), make(SimCLR)
    first, second = method.embed(batch["first"].pixels, batch["second"].pixels)
    for part in (slice(2), slice(2, 4)):
        expected = reference.embed(batch["first"].pixels[part], batch["second"].pixels[part])
        torch.testing.assert_close((first[part], second[part]), expected)


def test_a_batch_of_held_out_images_has_no_groups(make, batch):
    three = replace(batch, views={name: replace(view, pixels=view.pixels[:3]) for name, view in batch.views.items()})
    method, reference = (make(SimCLR, group=group).eval() for group in (2, 0))
    torch.testing.assert_close(method(three).total, reference(three).total)


def test_the_views_are_those_of_the_paper():
    views = SimCLR.views()
    assert views["first"] == views["second"]
    jitter = {"jitter": 0.8, "brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.2}
    augment = Augment(scale=(0.08, 1), grayscale=0.2, blur=0.5, blur_sigma=(0.1, 2), **jitter)
    assert views["first"] == augment.random_view()
    still = Augment(jitter=0)
    assert SimCLR.views(still) == {"first": still.random_view(), "second": still.random_view()}


def test_lars_scales_only_the_weights_of_layers(make):
    method = make(SimCLR)
    scaled, excluded = parameter_groups(method, Optimizer(name="lars", weight_decay=1e-6))
    layers = [m for m in method.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert {id(p) for p in scaled["params"]} == {id(layer.weight) for layer in layers}
    norms = [m for m in method.modules() if isinstance(m, _BatchNorm)]
    assert {id(p) for p in excluded["params"]} == {id(p) for norm in norms for p in norm.parameters()}
    assert (excluded["weight_decay"], excluded["adapt"]) == (0, False)


def test_step_never_waits_for_the_device(make, images, monkeypatch):
    """On the meta device nothing has a value: whatever asks for one raises."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # unknown on this device
    batch = ViewMaker(SimCLR.views(), 64, seed=0)(replace(images, pixels=images.pixels.to("meta")))
    losses = make(SimCLR, group=2).to("meta")(batch)
    losses.total.backward()
    assert losses.total.device.type == "meta"


def test_overfits_one_batch(make, batch, losses_on):
    method = make(SimCLR, "test_resnet")
    history = losses_on(method, batch, steps=14, lr=0.01)
    assert history[-1] < 0.5 * history[0]


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "convnext_atto"])
def test_any_convnet_will_do(batch, name):
    method = SimCLR(build_backbone(name))
    method(batch).total.backward()
    assert method.exported_backbone().name == name
    assert all(p.grad is not None for p in method.parameters())


def test_wrong_hyper_parameters_are_named(make):
    with pytest.raises(UserError, match="temperature must be positive, not 0"):
        make(SimCLR, temperature=0)
    with pytest.raises(UserError, match="a batch of one image has no negatives"):
        check(make(SimCLR), 96, 1)
