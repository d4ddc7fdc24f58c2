"""HIPT's networks against its equations, from files with the names and shapes of its released weights."""

import math

import pytest
import torch
import torch.nn.functional as F

from densepath.core.errors import UserError
from densepath.nets.backbones import build_backbone
from densepath.nets.backbones.names import HIPT_REGION
from densepath.nets.weights.backbone_weights import load_weights

PATCH = "vit_small_patch16_224(pos_offset=0.1)"


def state_of(dim, depth, positions, first):
    """A transformer of the released DINO and HIPT with random weights."""
    shapes = {**first, "cls_token": (1, 1, dim), "pos_embed": (1, positions + 1, dim), "norm.weight": (dim,)}
    shapes["norm.bias"] = (dim,)
    for number in range(depth):
        layers = {"attn.qkv": (3 * dim, dim), "attn.proj": (dim, dim)}
        layers |= {"mlp.fc1": (4 * dim, dim), "mlp.fc2": (dim, 4 * dim)}
        for name, shape in {"norm1": (dim,), "norm2": (dim,), **layers}.items():
            shapes |= {f"blocks.{number}.{name}.weight": shape, f"blocks.{number}.{name}.bias": shape[:1]}
    return {name: 0.1 * torch.randn(shape) for name, shape in shapes.items()}


def features_of(state, tokens, heads, grid):
    """All tokens (1, 1 + n, C) of embedded patches (n, C), as in the released vision_transformer4k.py."""
    own, dim = math.isqrt(state["pos_embed"].shape[1] - 1), tokens.shape[1]
    stored = state["pos_embed"][:, 1:].reshape(1, own, own, dim).permute(0, 3, 1, 2)
    spread = F.interpolate(stored, scale_factor=((grid + 0.1) / own,) * 2, mode="bicubic")
    positions = spread.permute(0, 2, 3, 1).view(-1, dim) if grid != own else state["pos_embed"][0, 1:]
    x = torch.cat((state["cls_token"][0] + state["pos_embed"][0, :1], tokens + positions))

    def layer(name, x):
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def norm(name, x):
        return F.layer_norm(x, (dim,), state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)

    for number in range(sum(name.endswith("norm1.weight") for name in state)):
        block = f"blocks.{number}."
        q, k, v = (
            part.view(len(x), heads, -1).transpose(0, 1)
            for part in layer(f"{block}attn.qkv", norm(f"{block}norm1", x)).chunk(3, 1)
        )
        weights = ((q @ k.transpose(1, 2)) / (dim // heads) ** 0.5).softmax(-1)
        x = x + layer(f"{block}attn.proj", (weights @ v).transpose(0, 1).flatten(1))
        x = x + layer(f"{block}mlp.fc2", F.gelu(layer(f"{block}mlp.fc1", norm(f"{block}norm2", x))))
    return norm("norm", x)


def write(path, state):
    """The layout of vit256_small_dino.pth and vit4k_xs_dino.pth."""
    head = {"head.mlp.0.weight": torch.zeros(8, 8), "head.last_layer.weight_v": torch.zeros(8, 8)}
    teacher = {f"backbone.{name}": value for name, value in state.items()} | head
    student = {f"module.backbone.{name}": torch.zeros_like(value) for name, value in state.items()}
    torch.save({"student": student, "teacher": teacher, "epoch": 1}, path)


@pytest.mark.parametrize("size", [256, 224])
def test_released_weights_of_patches_give_its_features(tmp_path, size):
    state = state_of(384, 2, 196, {"patch_embed.proj.weight": (384, 3, 16, 16), "patch_embed.proj.bias": (384,)})
    write(tmp_path / "vit256_small_dino.pth", state)
    backbone = build_backbone(PATCH.replace("(", "(depth=2, ")).eval()
    load_weights(backbone, tmp_path / "vit256_small_dino.pth", "teacher.backbone.", complete=True)
    pixels = torch.randn(1, 3, size, size)
    patches = F.conv2d(pixels, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], 16)
    expected = features_of(state, patches[0].flatten(1).T, 6, size // 16)
    with torch.no_grad():
        found = backbone.net.model.forward_features(pixels)[0]
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("grid", [16, 14, 6])
def test_released_weights_of_regions_give_its_features(tmp_path, grid):
    state = state_of(192, 6, 196, {"phi.0.weight": (192, 384), "phi.0.bias": (192,)})
    write(tmp_path / "vit4k_xs_dino.pth", state)
    backbone = build_backbone(HIPT_REGION, channels=384).eval()
    assert (backbone.patch_size, backbone.stages, backbone.channels[1]) == (1, (1,), 192)
    load_weights(backbone, tmp_path / "vit4k_xs_dino.pth", "teacher.backbone.", complete=True)
    features = torch.randn(1, 384, grid, grid)
    patches = F.gelu(F.linear(features[0].flatten(1).T, state["phi.0.weight"], state["phi.0.bias"]))
    expected = features_of(state, patches, 6, grid)
    with torch.no_grad():
        found = backbone.net.model.forward_features(features)[0]
        maps = backbone(features)[1]
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(maps[0].flatten(1).T, expected[1:], rtol=1e-3, atol=1e-4)


def test_the_width_halves_after_eight_blocks_and_all_are_trained():
    name = "vit_small_patch16_224(embed_dim=64, num_heads=2, depth=4, halve_after=3)"
    backbone = build_backbone(name)
    model = backbone.net.model
    assert backbone.channels == {4: 32} and model.num_features == 32 and len(model.blocks) == 4
    assert [block.attn.num_heads for block in model.blocks] == [2, 2, 2, 1]
    x = model._pos_embed(model.patch_embed(torch.randn(2, 3, 64, 64)))
    for block in model.blocks[:3]:
        x = block(x)
    last = model.blocks[3]
    x = F.linear(x, last.narrow.weight, last.narrow.bias)
    x = x + last.attn(last.norm1(x))
    x = x + last.mlp(last.norm2(x))
    torch.manual_seed(0)
    pixels = torch.randn(2, 3, 64, 64)
    backbone(pixels)[4].square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for n, p in backbone.named_parameters() if "norm" not in n)
    again = build_backbone(name)
    again.load_state_dict(backbone.state_dict())
    assert torch.equal(again(pixels)[4], backbone(pixels)[4])
    with pytest.raises(UserError, match="halved after 1 to 3 blocks, not 4"):
        build_backbone(name.replace("halve_after=3", "halve_after=4"))
