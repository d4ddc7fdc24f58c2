"""Filters before batch norms can have any norm without a change of the features."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from densepath.nets.backbones import Backbone, build_backbone
from densepath.nets.weights.filter_norms import filter_norms, set_filter_norms


def settled(name: str) -> Backbone:
    """A network that has seen images, so that its batch norms have statistics of their own."""
    torch.manual_seed(0)
    backbone = build_backbone(name).double().train()
    for _ in range(2):
        backbone(torch.randn(4, 3, 64, 64).double())
    return backbone


# EfficientNet has depthwise layers, and with "tf_" timm's own kind of convolution.
@pytest.mark.parametrize("name", ["resnet18", "regnetx_002", "tf_efficientnet_b0"])
@pytest.mark.parametrize("training", [False, True])
def test_features_do_not_depend_on_the_norms(name: str, training: bool) -> None:
    backbone = settled(name)
    norms = filter_norms(backbone)
    convolutions = [n for n, module in backbone.named_modules() if isinstance(module, nn.Conv2d)]
    if name.startswith("tf_"):  # those that squeeze and excite have an activation after them
        convolutions = [n for n in convolutions if ".se." not in n]
    assert list(norms) == convolutions
    for n in convolutions:
        assert norms[n] == pytest.approx(backbone.get_submodule(n).weight.square().sum().sqrt().item(), rel=1e-12)

    other = copy.deepcopy(backbone)
    for norm in other.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.eps = 1e-14  # what is added to a variance does not scale
    same = copy.deepcopy(other)
    factors = [0.2, 1.0, 5.0] * len(norms)
    wanted = {n: norm * factor for (n, norm), factor in zip(norms.items(), factors, strict=False)}
    changed = set_filter_norms(other, wanted)
    assert len(changed) == sum(factor != 1 for factor, _ in zip(factors, norms, strict=False))
    assert filter_norms(other) == pytest.approx(wanted, rel=1e-12)
    x = torch.randn(2, 3, 64, 64).double()
    ours, theirs = other.train(training)(x), same.train(training)(x)
    for stage, feature in theirs.items():
        torch.testing.assert_close(ours[stage], feature, rtol=1e-9, atol=1e-9)


def test_filters_whose_output_is_a_feature_stay() -> None:
    backbone = settled("ghostnet_050")  # its f1 is taken before the batch norm
    x = torch.randn(2, 3, 64, 64).double()
    expected = backbone.eval()(x)
    norms = filter_norms(backbone)
    assert "net.blocks_0.0.ghost1.primary_conv.0" in norms and "net.conv_stem" not in norms
    set_filter_norms(backbone, {n: 2 * norm for n, norm in norms.items()})
    for stage, feature in backbone(x).items():
        torch.testing.assert_close(feature, expected[stage], rtol=1e-2, atol=1e-2)


def test_filters_with_large_norms_turn_less_in_a_step() -> None:
    # The reason for all this: with five times the norm the same step turns filters 25 times less.
    turned = []
    for factor in (1, 5):
        backbone = settled("resnet18")
        norms = filter_norms(backbone)
        set_filter_norms(backbone, {n: norm * factor for n, norm in norms.items()})
        conv = backbone.net["conv1"]
        before = conv.weight.detach().clone()
        torch.manual_seed(1)
        # Not the square of what a batch norm gave out: its sum is a constant.
        backbone.train()(torch.randn(4, 3, 64, 64).double())[5].pow(3).mean().backward()
        with torch.no_grad():
            after = before - 1e-4 * conv.weight.grad
        turned.append(torch.linalg.vector_norm(after / after.norm() - before / before.norm()).item())
    assert turned[0] == pytest.approx(25 * turned[1], rel=1e-3)


def test_biases_scale_too_and_other_statistics_stay() -> None:
    backbone = settled("resnet18")
    old = backbone.net["conv1"]
    backbone.net["conv1"] = conv = nn.Conv2d(3, 64, 7, stride=2, padding=3).double()
    conv.weight.data.copy_(old.weight)
    untouched = copy.deepcopy(backbone.state_dict())
    x = torch.randn(2, 3, 64, 64).double()
    expected = backbone.eval()(x)[5]
    norms = filter_norms(backbone)
    assert set_filter_norms(backbone, norms) == {}
    assert set_filter_norms(backbone, norms | {"net.conv1": 3 * norms["net.conv1"]}) == {"net.conv1": pytest.approx(3)}
    torch.testing.assert_close(backbone(x)[5], expected, rtol=1e-4, atol=1e-4)
    changed = {name for name, value in backbone.state_dict().items() if not torch.equal(value, untouched[name])}
    assert changed == {"net.conv1.weight", "net.conv1.bias", "net.bn1.running_mean", "net.bn1.running_var"}


def test_filters_of_zeros_stay() -> None:
    backbone = settled("resnet18")
    norms = filter_norms(backbone)
    nn.init.zeros_(backbone.net["conv1"].weight)
    assert set_filter_norms(backbone, norms) == {}
    assert not backbone.net["conv1"].weight.any()


@pytest.mark.parametrize("name", ["convnext_atto", "vit_tiny_patch16_224", "resnetv2_50x1_bit"])
def test_networks_with_other_norms_have_no_such_filters(name: str) -> None:
    backbone = build_backbone(name)
    assert filter_norms(backbone) == {} == set_filter_norms(backbone, {})


def test_looking_leaves_the_network_as_it_was() -> None:
    backbone = settled("resnet18")
    backbone.net["bn1"].eval()
    before = copy.deepcopy(backbone.state_dict())
    filter_norms(backbone)
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    assert backbone.training and not backbone.net["bn1"].training
    assert not any(module._forward_hooks for module in backbone.modules())
