"""Residual networks for volumes, against torchvision's and against a dense loop."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.video import r3d_18

from densepath.core.errors import UserError
from densepath.nets.backbones import Backbone, build_backbone
from densepath.nets.batch_norms import GhostBatchNorm3d
from densepath.nets.norms import group_batch_norm, plain_batch_norm
from densepath.nets.weights import load_weights, read_weights, save_backbone

SMALL = "resnet10_3d_w4"


def volumes(*size, channels=1, count=2):
    return torch.randn(count, channels, *size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("training", [False, True])
def test_it_is_torchvisions_where_torchvision_has_it(training):
    torch.manual_seed(0)
    theirs, ours = r3d_18(), build_backbone("resnet18_3d_s122")
    weights = {name: value for name, value in theirs.state_dict().items() if not name.startswith("fc.")}
    ours.net.load_state_dict(weights)
    theirs.train(training)
    ours.train(training)
    x = volumes(4, 32, 32, channels=3)
    maps = ours(x)
    for stage, layer in enumerate(list(theirs.children())[:5], start=1):
        x = layer(x)
        torch.testing.assert_close(maps[stage], x)


@pytest.mark.parametrize(
    ("name", "size", "strides"),
    [
        (SMALL, (32, 32, 16), [(2, 2, 2), (2, 2, 2), (4, 4, 4), (8, 8, 8), (16, 16, 16)]),
        (f"{SMALL}_s221", (33, 31, 15), [(2, 2, 1), (2, 2, 1), (4, 4, 2), (8, 8, 4), (16, 16, 8)]),
        ("resnet18_3d_w4_s122", (7, 16, 20), [(1, 2, 2), (1, 2, 2), (2, 4, 4), (4, 8, 8), (8, 16, 16)]),
    ],
)
def test_stages_have_the_channels_and_strides_that_they_declare(name, size, strides):
    backbone = build_backbone(name, channels=2)
    assert list(backbone.strides.values()) == strides
    assert (backbone.ndim, backbone.in_channels, backbone.stages, backbone.deepest) == (3, 2, (1, 2, 3, 4, 5), 5)
    maps = backbone(volumes(*size, channels=2))
    for stage in backbone.stages:
        grid = tuple(math.ceil(side / stride) for side, stride in zip(size, strides[stage - 1], strict=True))
        assert backbone.grid(stage, *size) == grid
        assert maps[stage].shape == (2, backbone.channels[stage], *grid)
    assert list(backbone.channels.values()) == [4, 4, 8, 16, 32]


def test_it_stops_early():
    backbone, seen = build_backbone(SMALL, channels=1).eval(), []
    for layer in backbone.net:
        layer.register_forward_hook(lambda *_: seen.append(1))
    x = volumes(16, 16, 16)
    early = backbone(x, last=3)
    assert list(early) == [1, 2, 3] and len(seen) == 3
    whole = backbone(x, last=9)
    assert list(whole) == [1, 2, 3, 4, 5]
    assert all(torch.equal(early[stage], whole[stage]) for stage in early)


def test_it_begins_as_the_resnets_for_images_do():
    torch.manual_seed(0)
    backbone = build_backbone("resnet10_3d", channels=1)
    for module in backbone.modules():
        if isinstance(module, nn.Conv3d):
            fan_in = module.weight[0].numel()
            assert module.weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.1)
        elif isinstance(module, nn.BatchNorm3d):
            assert module.weight.eq(1).all() and module.bias.eq(0).all()


def test_its_weights_travel(tmp_path):
    torch.manual_seed(0)
    one, other = build_backbone(f"{SMALL}_s122", channels=1), build_backbone(f"{SMALL}_s122", channels=1)
    one(volumes(8, 16, 16))  # moves the running statistics
    path = tmp_path / "weights.safetensors"
    save_backbone(path, one, metadata={"method": "moco_v2"})
    metadata = read_weights(path).metadata
    assert (metadata["backbone"], metadata["layout"], metadata["untrained"]) == (f"{SMALL}_s122", "densepath", "")
    assert "tensors from" in load_weights(build_backbone(metadata["backbone"], channels=1), path)
    load_weights(other, path)
    torch.testing.assert_close(other.state_dict(), {**one.state_dict(), **_counts(other)}, rtol=0, atol=0)
    with pytest.raises(UserError, match=r"does not fit resnet10_3d_w8_s122.*--backbone resnet10_3d_w4_s122"):
        load_weights(build_backbone("resnet10_3d_w8_s122", channels=1), path)
    with pytest.raises(UserError, match="has no counterpart in torchvision; export it in the default layout"):
        save_backbone(path, one, "torchvision")


def test_its_batch_norms_may_be_over_groups():
    torch.manual_seed(0)
    backbone = build_backbone(SMALL, channels=1)
    plain = build_backbone(SMALL, channels=1)
    plain.load_state_dict(backbone.state_dict())
    group_batch_norm(backbone, 2)
    assert sum(isinstance(module, GhostBatchNorm3d) for module in backbone.modules()) == 12
    x = volumes(16, 16, 16, count=4)
    torch.testing.assert_close(backbone(x)[5], torch.cat((plain(x[:2])[5], plain(x[2:])[5])))
    assert not any(isinstance(module, GhostBatchNorm3d) for module in plain_batch_norm(backbone).modules())


@pytest.mark.parametrize("name", ["resnet50_3d", "resnet10_3d_w0", "resnet18_3d_s322", "convnext_3d", "resnet10_3d_w"])
def test_the_error_about_an_unknown_name_lists_the_known_ones(name):
    with pytest.raises(UserError, match=f"unknown backbone '{name}'; for volumes there are resnet10_3d, resnet18_3d"):
        build_backbone(name)


def test_images_and_volumes_are_not_mistaken_for_each_other():
    with pytest.raises(UserError, match="resnet10_3d_w4 takes images of 3 dimensions, but these have 2"):
        build_backbone(SMALL)(torch.zeros(1, 3, 32, 32))
    with pytest.raises(UserError, match="test_resnet takes images of 2 dimensions, but these have 3"):
        build_backbone("test_resnet").check_size(32, 32, 16)
    with pytest.raises(UserError, match="has no stage f0; choose one of f1, f2"):
        build_backbone(SMALL)(torch.zeros(1, 3, 16, 16, 16), last=0)


def test_a_network_of_ones_own_is_a_backbone():
    class Own(Backbone):
        def __init__(self):
            super().__init__(nn.Conv3d(1, 6, (1, 2, 4), (1, 2, 4)), "own", {2: 6}, {2: (1, 2, 4)}, in_channels=1)

        def forward(self, x, last=5):
            return {2: self.net(x)}

    own = Own()
    assert (own.stages, own.deepest, own.ndim, own.library) == ((2,), 2, 3, "densepath")
    assert own(torch.zeros(1, 1, 3, 8, 8))[2].shape[2:] == own.grid(2, 3, 8, 8) == (3, 4, 2)
    with pytest.raises(UserError, match="own has no stage f5; choose one of f2"):
        own.check_stage(5)
    with pytest.raises(UserError, match="own cannot run only its last stage"):
        own.last_stage()
    with pytest.raises(UserError, match="own is not a ConvNet that can be divided after its stem"):
        own.stem_and_stages()


def test_a_block_is_two_convolutions_beside_a_shortcut():
    backbone = build_backbone(SMALL, channels=1).eval()
    block, x = backbone.net[2][0], volumes(5, 6, 7, channels=4)
    hidden = F.conv3d(x, block.conv1[0].weight, stride=2, padding=1) / (1 + 1e-5) ** 0.5
    out = F.conv3d(hidden.relu(), block.conv2[0].weight, padding=1) / (1 + 1e-5) ** 0.5
    shortcut = F.conv3d(x, block.downsample[0].weight, stride=2) / (1 + 1e-5) ** 0.5
    torch.testing.assert_close(block(x), (out + shortcut).relu())


def _counts(network):
    return {name: value for name, value in network.state_dict().items() if name.endswith("num_batches_tracked")}
