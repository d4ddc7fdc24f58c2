"""The projection head."""

from __future__ import annotations

import torch

from densepath.nets.heads import DenseHead, MLPHead


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
