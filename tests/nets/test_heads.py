"""The projection head."""

from __future__ import annotations

import pytest
import torch
from lightly.models.modules.heads import DINOProjectionHead
from torch import nn

from densepath.nets.heads import DenseHead, MLPHead, PrototypeHead


def test_head_is_two_linear_layers_with_a_relu_between() -> None:
    head = MLPHead(8, 16, 4)
    x = torch.randn(2, 5, 8)
    hidden = (x @ head.fc1.weight.T + head.fc1.bias).clamp(min=0)
    torch.testing.assert_close(head(x), hidden @ head.fc2.weight.T + head.fc2.bias)


def test_head_is_initialized_kaiming_normal_over_the_fan_in_with_zero_bias() -> None:
    head = MLPHead(512, 1024, 128)
    for layer, fan_in in ((head.fc1, 512), (head.fc2, 1024)):
        assert abs(layer.weight.std().item() / (2 / fan_in) ** 0.5 - 1) < 0.02
        # A normal distribution has kurtosis 3; a uniform one, torch's default, has 1.8.
        assert abs((layer.weight**4).mean().item() / layer.weight.var().item() ** 2 - 3) < 0.1
        assert not layer.bias.any()


def test_a_dense_head_projects_every_position_alike_and_keeps_the_initialization_of_torch() -> None:
    head = DenseHead(8, 16, 4)
    x = torch.randn(2, 8, 3, 3)
    first, second = (layer.weight.flatten(1) for layer in (head.conv1, head.conv2))
    hidden = (x[1, :, 0, 2] @ first.T + head.conv1.bias).clamp(min=0)
    torch.testing.assert_close(head(x)[1, :, 0, 2], hidden @ second.T + head.conv2.bias)
    volumes = DenseHead(8, 16, 4, ndim=3)
    volumes.load_state_dict({name: v.unsqueeze(-1) if v.ndim > 1 else v for name, v in head.state_dict().items()})
    torch.testing.assert_close(volumes(x.view(2, 8, 1, 3, 3)), head(x).view(2, 4, 1, 3, 3))
    for layer, fan_in in ((head.conv1, 8), (head.conv2, 16)):
        largest = layer.weight.abs().max().item()
        assert 0.8 < largest * fan_in**0.5 <= 1  # uniform within one over the root of the fan-in
        assert layer.bias.any()


@pytest.mark.parametrize("batch_norm", [False, True])
def test_prototype_head_equals_that_of_lightly(batch_norm: bool) -> None:
    torch.manual_seed(0)
    ours = PrototypeHead(12, 16, 8, 20, batch_norm=batch_norm)
    theirs = DINOProjectionHead(12, 16, 8, 20, norm_last_layer=True, batch_norm=batch_norm)
    linear = [layer for layer in theirs.layers if isinstance(layer, nn.Linear)]
    with torch.no_grad():
        for one, other in zip((ours.fc1, ours.fc2, ours.fc3), linear, strict=True):
            if one.bias is not None:
                one.bias.normal_()
            other.load_state_dict(one.state_dict())
        theirs.last_layer.weight_v.copy_(ours.prototypes.directions)
    x = torch.randn(5, 12)
    torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(ours(x), ours.embed(x) @ ours.prototypes().T)
    torch.testing.assert_close(ours.prototypes().norm(dim=1), torch.ones(20))
    ours(x).square().sum().backward()
    theirs(x).square().sum().backward()
    expected = theirs.last_layer.weight_v.grad
    torch.testing.assert_close(ours.prototypes.directions.grad, expected)


def test_prototypes_have_the_initialization_of_the_released_code() -> None:
    """The last layer is made after the others are initialized."""
    head = PrototypeHead(64, 256, 128, 500)
    assert head.fc2.weight.std().item() == pytest.approx(0.02, rel=0.03)
    assert not head.fc2.bias.any()
    assert head.prototypes.directions.abs().max().item() == pytest.approx(1 / 128**0.5, rel=0.01)
    assert head.prototypes.directions.std().item() == pytest.approx((3 * 128) ** -0.5, rel=0.02)
    assert (head.prototypes.lengths == 1).all() and not head.prototypes.lengths.requires_grad
    assert PrototypeHead(4, 4, 4, 4, fixed_lengths=False).prototypes.lengths.requires_grad
