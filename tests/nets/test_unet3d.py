"""The 3D U-Net of Models Genesis: released shapes and files, any size and channels, group norms."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from densepath.core.errors import UserError
from densepath.nets.backbones import build_backbone
from densepath.nets.decoders.build import build_decoder, decoder_state, load_decoder
from densepath.nets.norms import to_group_norm
from densepath.nets.weights import load_weights
from densepath.nets.weights.pretrained import pretrained_backbone

FULL = {  # shapes of some of the released tensors
    "down_tr64.ops.0.conv1.weight": (32, 1, 3, 3, 3),
    "down_tr64.ops.1.conv1.weight": (64, 32, 3, 3, 3),
    "down_tr512.ops.0.conv1.weight": (256, 256, 3, 3, 3),
    "down_tr512.ops.1.bn1.running_var": (512,),
    "up_tr256.up_conv.weight": (512, 512, 2, 2, 2),
    "up_tr256.ops.0.conv1.weight": (256, 768, 3, 3, 3),
    "up_tr128.up_conv.weight": (256, 256, 2, 2, 2),
    "up_tr64.ops.0.conv1.weight": (64, 192, 3, 3, 3),
    "up_tr64.ops.1.conv1.bias": (64,),
    "out_tr.final_conv.weight": (1, 64, 1, 1, 1),
}


def released_pass(state, x):
    """The released forward pass, before its sigmoid, from the published names alone."""

    def convolved(x, level):
        for number in (0, 1):
            name = f"module.{level}.ops.{number}"
            x = F.conv3d(x, state[f"{name}.conv1.weight"], state[f"{name}.conv1.bias"], padding=1)
            x = F.batch_norm(x, None, None, state[f"{name}.bn1.weight"], state[f"{name}.bn1.bias"], training=True)
            x = x.clamp(min=0)
        return x

    skips = []
    for level in ("down_tr64", "down_tr128", "down_tr256"):
        skips.append(convolved(x, level))
        x = F.max_pool3d(skips[-1], 2)
    x = convolved(x, "down_tr512")
    for level, skip in zip(("up_tr256", "up_tr128", "up_tr64"), reversed(skips), strict=True):
        name = f"module.{level}.up_conv"
        x = F.conv_transpose3d(x, state[f"{name}.weight"], state[f"{name}.bias"], stride=2)
        x = convolved(torch.cat((x, skip), 1), level)
    return F.conv3d(x, state["module.out_tr.final_conv.weight"], state["module.out_tr.final_conv.bias"])


def test_the_full_width_has_the_released_shapes():
    with torch.device("meta"):
        backbone = build_backbone("unet_3d", 1)
        state = backbone.net.state_dict() | decoder_state(*build_decoder(backbone))
    assert {name: tuple(state[name].shape) for name in FULL} == FULL
    assert len(state) == 14 * 7 + 3 * 2 + 2  # convolutions with norms, transposed ones, and the last
    assert backbone.channels == {1: 64, 2: 128, 3: 256, 4: 512}


def test_a_released_checkpoint_gives_the_released_forward_pass(tmp_path):
    torch.manual_seed(0)
    source = build_backbone("unet_3d_w2", 1)
    decoder, head = build_decoder(source)
    state = source.net.state_dict() | decoder_state(decoder, head)
    released = {f"module.{name}": torch.randn_like(x) if x.is_floating_point() else x for name, x in state.items()}
    released |= {name: x.abs() for name, x in released.items() if "running_var" in name}
    torch.save({"epoch": 1, "state_dict": released, "optimizer_state_dict": {}}, tmp_path / "Genesis_Chest_CT.pt")

    backbone = build_backbone("unet_3d_w2", 1)
    decoder, head = build_decoder(backbone)
    lines: list[str] = []
    line = load_weights(backbone, tmp_path / "Genesis_Chest_CT.pt", report=lines)
    assert "down_tr128.ops.0.bn1.bias 4: from module.down_tr128.ops.0.bn1.bias" in lines
    assert "not used: module.out_tr.final_conv.bias 1" in lines
    assert "48 of 48 tensors" in line and "under module." in line
    assert "decoder" in load_decoder(decoder, tmp_path / "Genesis_Chest_CT.pt")
    head.load_state_dict(
        {f"final_conv.{leaf}": released[f"module.out_tr.final_conv.{leaf}"] for leaf in ("weight", "bias")}
    )
    found = pretrained_backbone(tmp_path / "Genesis_Chest_CT.pt")
    assert found.backbone.name == "unet_3d_w2"
    assert (found.spec.ndim, found.spec.window, found.spec.mean, found.spec.std) == (3, (-1000, 1000), (0,), (1,))
    x = torch.randn(2, 1, 16, 8, 24)
    torch.testing.assert_close(
        head(decoder(backbone(x), x.shape[2:])), released_pass(released, x), atol=1e-3, rtol=1e-3
    )
    with pytest.raises(UserError, match="does not fit unet_3d_w4: the shapes of"):
        load_weights(build_backbone("unet_3d_w4", 1), tmp_path / "Genesis_Chest_CT.pt")


def test_weights_of_one_channel_serve_several(tmp_path):
    one, four = build_backbone("unet_3d_w2", 1), build_backbone("unet_3d_w2", 4)
    torch.save(one.net.state_dict(), tmp_path / "one.pt")
    lines: list[str] = []
    load_weights(four, tmp_path / "one.pt", report=lines)
    first = "down_tr64.ops.0.conv1"
    assert lines[0] == f"{first}.weight 2x4x3x3x3: from {first}.weight, adapted from 2x1x3x3x3"
    assert lines[1] == f"{first}.bias 2: from {first}.bias" and len(lines) == len(four.net.state_dict())
    x = torch.randn(2, 1, 8, 8, 8)
    torch.testing.assert_close(four(x.expand(-1, 4, -1, -1, -1))[4], one(x)[4], atol=1e-5, rtol=1e-4)


def test_odd_sizes_and_early_stages():
    backbone = build_backbone("unet_3d_w2", 1)
    decoder, head = build_decoder(backbone)
    size = (9, 13, 18)
    maps = backbone(torch.randn(2, 1, *size))
    assert {stage: tuple(x.shape[2:]) for stage, x in maps.items()} == {s: backbone.grid(s, *size) for s in range(1, 5)}
    assert head(decoder(maps, size)).shape == (2, 1, *size)
    assert list(backbone(torch.randn(2, 1, 8, 8, 8), last=2)) == [1, 2]
    with pytest.raises(UserError, match="unknown backbone 'unet_3d_w0'; U-Nets are unet_3d"):
        build_backbone("unet_3d_w0", 1)


def test_batch_norms_become_group_norms_with_the_same_weights():
    backbone = build_backbone("unet_3d_w4", 1)
    for norm in backbone.modules():
        if isinstance(norm, nn.BatchNorm3d):
            nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    before = {name: value.clone() for name, value in backbone.named_parameters()}
    first = backbone.net[0].ops[0]
    x = torch.randn(2, 1, 8, 8, 8)
    y = first.conv1(x)
    assert to_group_norm(backbone, 8) is backbone
    assert {name: value.shape for name, value in backbone.named_parameters()} == {n: v.shape for n, v in before.items()}
    assert all(torch.equal(value, before[name]) for name, value in backbone.named_parameters())
    grouped = y.view(2, 4, -1)  # four channels have four groups
    normal = (grouped - grouped.mean(2, keepdim=True)) / (grouped.var(2, keepdim=True, correction=0) + 1e-5).sqrt()
    expected = normal.view_as(y) * first.bn1.weight.view(4, 1, 1, 1) + first.bn1.bias.view(4, 1, 1, 1)
    torch.testing.assert_close(first(x), expected.clamp(min=0))
    assert not any(isinstance(module, nn.BatchNorm3d) for module in backbone.modules())
    assert backbone.net[3].ops[1].bn1.num_groups == 8
    assert to_group_norm(nn.Sequential(nn.BatchNorm1d(12)), 8)[0].num_groups == 6
