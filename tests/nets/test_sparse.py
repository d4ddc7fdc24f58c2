"""Sparse encoding, against the dense network where all is visible, and against masks after every layer elsewhere."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from timm.layers import LayerNorm2d
from timm.models.convnext import ConvNeXtBlock
from torch import Tensor, nn

from densepath.core.errors import UserError
from densepath.core.masking import enlarge, random_visible
from densepath.nets.backbones import Backbone, build_backbone
from densepath.nets.norms import group_batch_norm
from densepath.nets.sparse import Visible, check_sparse, encode_sparsely


def some_visible(images: int = 2, along: int = 2, count: int = 2) -> Visible:
    noise = torch.rand(images, along**2, generator=torch.Generator().manual_seed(3))
    return Visible(random_visible(noise, count).view(images, along, along), count)


def moved(name: str) -> Backbone:
    """A backbone in float64 whose norms and biases do something."""
    backbone = build_backbone(name).double()
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return backbone


def masked_everywhere(backbone: Backbone, pixels: Tensor, patches: Tensor) -> dict[int, Tensor]:
    """SparK as in the paper: the mask after each layer, and statistics of the visible positions."""

    def mask(x: Tensor) -> Tensor:
        return torch.where(enlarge(patches, x.shape[-1]), x, 0.0)

    def after(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return mask(output)

    def norm(module: Any, x: Tensor) -> Tensor:
        flags = enlarge(patches, x.shape[-1])[:, 0]
        rows = x.permute(0, 2, 3, 1)[flags]  # (n, C)
        variance, mean = torch.var_mean(rows, 0, correction=0)
        out = torch.zeros_like(x.permute(0, 2, 3, 1))
        out[flags] = (rows - mean) / (variance + module.eps).sqrt() * module.weight + module.bias
        module.running_mean.lerp_(mean.detach(), 0.1)
        module.running_var.lerp_((variance * len(rows) / (len(rows) - 1)).detach(), 0.1)
        out = out.permute(0, 3, 1, 2)
        return mask(module.act(out)) if hasattr(module, "act") else out

    for module in backbone.net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.forward = partial(norm, module)  # type: ignore[method-assign]
        elif isinstance(module, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d | LayerNorm2d | ConvNeXtBlock):
            module.register_forward_hook(after)
    return {stage: mask(x) for stage, x in backbone(mask(pixels)).items()}


@pytest.mark.parametrize("name", ["test_resnet", "resnet18d", "test_convnext"])
def test_maps_and_gradients_are_those_of_a_mask_after_every_layer(name: str) -> None:
    ours, theirs = moved(name), build_backbone(name).double()
    theirs.load_state_dict(ours.state_dict())
    visible, pixels = some_visible(), torch.randn(2, 3, 64, 64).double()
    maps, expected = encode_sparsely(ours, pixels, visible), masked_everywhere(theirs, pixels, visible.patches)
    torch.testing.assert_close(maps, expected)
    weights = {stage: torch.randn_like(x) for stage, x in maps.items()}
    for found in (maps, expected):
        sum((x * weights[stage]).sum() for stage, x in found.items()).backward()
    gradients = [{key: p.grad for key, p in net.named_parameters() if p.grad is not None} for net in (ours, theirs)]
    assert gradients[0]
    torch.testing.assert_close(*gradients)
    for key, value in theirs.state_dict().items():
        if "running" in key:
            torch.testing.assert_close(ours.state_dict()[key], value)


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext"])
def test_with_everything_visible_it_is_the_dense_network(name: str) -> None:
    sparse, dense = moved(name), build_backbone(name).double()
    dense.load_state_dict(sparse.state_dict())
    pixels = torch.randn(2, 3, 64, 64).double()
    for mode in (True, False):
        maps = encode_sparsely(sparse.train(mode), pixels, Visible(torch.ones(2, 2, 2).bool(), 4))
        torch.testing.assert_close(maps, dense.train(mode)(pixels))
    torch.testing.assert_close(sparse.state_dict(), dense.state_dict())


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_pixels_of_masked_positions_change_no_bit(name: str, memory_format: torch.memory_format) -> None:
    backbone, visible = build_backbone(name).to(memory_format=memory_format), some_visible()
    pixels = torch.randn(2, 3, 64, 64).to(memory_format=memory_format)
    other = torch.where(visible.mask(64), pixels, 100 * torch.randn_like(pixels))
    for mode in (True, False):
        backbone.train(mode)
        with torch.autocast("cpu", torch.bfloat16, enabled=mode):
            one, two = (encode_sparsely(backbone, x, visible) for x in (pixels, other))
        assert all(torch.equal(one[stage], two[stage]) for stage in backbone.stages)
        seen = torch.where(visible.mask(64), pixels, 0.0) + visible.mask(64)
        assert not torch.equal(encode_sparsely(backbone, seen, visible)[5], one[5])


def test_groups_of_images_have_statistics_of_their_own() -> None:
    backbone, plain = moved("test_resnet"), build_backbone("test_resnet").double()
    plain.load_state_dict(backbone.state_dict())
    group_batch_norm(backbone, 2)
    visible, pixels = some_visible(images=4), torch.randn(4, 3, 64, 64).double()
    maps = encode_sparsely(backbone, pixels, visible)
    parts = [encode_sparsely(plain, pixels[i : i + 2], Visible(visible.patches[i : i + 2], 2)) for i in (0, 2)]
    torch.testing.assert_close(maps, {stage: torch.cat([part[stage] for part in parts]) for stage in maps})


def test_visible_positions_are_gathered_and_put_back() -> None:
    visible, x = some_visible(images=3, along=3, count=4), torch.randn(3, 5, 6, 6).double().requires_grad_()
    rows = visible.gather(x)
    assert rows.shape == (3, 5, 1, 16) and rows.is_contiguous(memory_format=torch.channels_last)
    for image in range(3):
        picked = [(r, c) for r in range(6) for c in range(6) if visible.patches[image, r // 2, c // 2]]
        expected = sorted(tuple(x[image, :, r, c].tolist()) for r, c in picked)
        assert sorted(tuple(row) for row in rows[image, :, 0].T.tolist()) == expected
    assert torch.equal(visible.scatter(rows), visible.clean(x))
    assert torch.autograd.gradcheck(lambda x: visible.scatter(visible.gather(x).square()), x)


def test_the_network_is_as_it_was_after_a_pass() -> None:
    backbone = build_backbone("test_resnet")
    keys, pixels = list(backbone.state_dict()), torch.randn(2, 3, 64, 64)
    before = backbone.eval()(pixels)
    encode_sparsely(backbone, pixels, some_visible())
    assert list(backbone.state_dict()) == keys
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in backbone.modules())
    torch.testing.assert_close(backbone(pixels), before, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["seresnet18", "efficientnet_b0", "test_vit", "convnextv2_atto", "resnetblur18"])
def test_networks_that_look_at_more_than_a_window_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"{name} has a .*no sparse form"):
        check_sparse(build_backbone(name))
    check_sparse(build_backbone("test_resnet"))
