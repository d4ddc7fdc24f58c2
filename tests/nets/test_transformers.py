"""Vision transformers: their one map, the sizes they take, and their weights in and out."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor, nn

from densepath.core.errors import UserError
from densepath.nets.backbones import Backbone, build_backbone
from densepath.nets.backbones.transformers import resize_positions
from densepath.nets.weights import load_weights, read_weights, save_backbone
from densepath.nets.weights.layouts import arrange
from densepath.nets.weights.transformer_names import to_timm

IMAGES = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
OWN_SIZE = torch.randn(2, 3, 160, 160, generator=torch.Generator().manual_seed(2))  # pixels, that of test_vit


def _trained(name: str) -> Backbone:
    """A backbone in eval mode that has moved from its start, where norms and biases do nothing."""
    backbone = build_backbone(name)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return backbone.eval()


def _tokens(network: Any, pixels: Tensor) -> Tensor:
    """The patch tokens (B, C, h, w) that timm's whole network makes, in eval mode, of images."""
    tokens = network.eval().forward_features(pixels)[:, network.num_prefix_tokens :]
    height, width = (side // network.patch_embed.patch_size[0] for side in pixels.shape[2:])
    return tokens.transpose(1, 2).unflatten(2, (height, width))


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "test_vit", "test_vit3", "vit_small_patch16_dinov3"])
@torch.no_grad()
def test_the_only_map_is_that_of_timms_patch_tokens_after_the_norm(name: str) -> None:
    backbone = _trained(name)
    network = timm.create_model(name, num_classes=0, dynamic_img_size=True)
    loaded = network.load_state_dict(
        {key.removeprefix("net.model."): value for key, value in backbone.state_dict().items()}, strict=False
    )
    assert all(key.startswith("attn_pool.") for key in loaded.missing_keys) and not loaded.unexpected_keys
    maps = backbone(IMAGES)
    assert backbone.stages == tuple(maps) == (4,)
    assert maps[4].shape == (2, backbone.channels[4], 4, 6)
    torch.testing.assert_close(maps[4], _tokens(network, IMAGES))
    assert torch.equal(backbone(IMAGES, last=4)[4], maps[4])


@pytest.mark.parametrize(("name", "stage"), [("vit_small_patch8_224", 3), ("vit_small_patch32_224", 5)])
@torch.no_grad()
def test_the_size_of_the_patches_says_which_stage_it_is(name: str, stage: int) -> None:
    backbone = build_backbone(name)
    assert (backbone.stages, backbone.deepest, backbone.patch_size) == ((stage,), stage, 2**stage)
    assert backbone(IMAGES)[stage].shape == (2, 384, 64 // 2**stage, 96 // 2**stage)
    with pytest.raises(UserError, match=rf"{name} has no stage f2; choose one of f{stage}$"):
        backbone.check_stage(2)


def test_images_that_the_patches_do_not_divide_are_refused() -> None:
    backbone = build_backbone("test_vit")
    message = r"test_vit divides images into patches of 16 px, and 100 x 64 px is not a multiple of that"
    with pytest.raises(UserError, match=message):
        backbone(torch.zeros(1, 3, 64, 100))
    with pytest.raises(UserError, match=r"use a size that is one, e\.g\. 96$"):
        backbone.check_size(100, 100)
    build_backbone("resnet18").check_size(100, 75)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "test_vit(patch_size=80)",
            "patches of 80 x 80 px; choose a vision transformer with square patches of 6 to",
        ),
        ("test_vit2", "only a norm of its pooled features"),
    ],
)
def test_transformers_without_a_stage_or_a_norm_are_refused(name: str, message: str) -> None:
    with pytest.raises(UserError, match=f"{re.escape(name)} has {message}"):
        build_backbone(name)


@pytest.mark.parametrize("name", ["test_vit(", "test_vit(1)", "test_vit(depth=open('x'))", "f(x)(depth=1)"])
def test_a_name_that_is_not_one_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"is not the name of a backbone|unknown backbone"):
        build_backbone(name)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "test_vit3"])
def test_every_parameter_takes_part(name: str) -> None:
    """Data-parallel training waits for a gradient of each; class tokens get theirs by the attention of the patches."""
    backbone = build_backbone(name)
    (backbone(IMAGES)[4].mean((2, 3)) * torch.randn(backbone.channels[4])).sum().backward()
    assert [key for key, p in backbone.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("name", ["test_vit", "test_vit3"])
@torch.no_grad()
def test_timm_loads_the_file_by_its_own_call_and_gives_equal_tokens(name: str, tmp_path: Path) -> None:
    backbone, path = _trained(name), tmp_path / "backbone.safetensors"
    save_backbone(path, backbone)
    network = timm.create_model(name, num_classes=0, checkpoint_path=str(path))
    torch.testing.assert_close(backbone(OWN_SIZE)[4], _tokens(network, OWN_SIZE))
    assert set(filter(None, read_weights(path).metadata["untrained"].split(", "))) == {
        key for key in network.state_dict() if key.startswith("attn_pool.")
    }


def test_a_file_comes_back_whole_and_other_libraries_lack_the_network(tmp_path: Path) -> None:
    backbone, again, path = _trained("test_vit"), build_backbone("test_vit"), tmp_path / "backbone.safetensors"
    save_backbone(path, backbone)
    count = len(backbone.state_dict())
    assert load_weights(again, path) == f"test_vit with {count} of {count} tensors from {path}"
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in backbone.state_dict().items())
    for layout in ("torchvision", "detectron2"):
        with pytest.raises(
            UserError, match=f"{layout} has no network that equals timm's test_vit; use the layout timm"
        ):
            arrange(backbone, layout)
    with pytest.raises(UserError, match=r"does not fit resnet18: .*\(--backbone test_vit\)"):
        load_weights(build_backbone("resnet18"), path)


def test_the_student_of_a_foreign_checkpoint_is_found(tmp_path: Path) -> None:
    """DINO's names are timm's; its teacher and its heads stay where they are."""
    student, teacher = (timm.create_model("test_vit", num_classes=0) for _ in range(2))
    path = tmp_path / "dino.pth"
    torch.save(
        {
            "teacher": {f"backbone.{key}": value for key, value in teacher.state_dict().items()},
            "student": {f"module.backbone.{key}": value for key, value in student.state_dict().items()}
            | {"module.head.mlp.0.weight": torch.zeros(3, 3)},
        },
        path,
    )
    backbone = build_backbone("test_vit")
    assert "under student.module.backbone." in load_weights(backbone, path)
    assert all(torch.equal(value, backbone.net.model.state_dict()[key]) for key, value in student.state_dict().items())


def test_blocks_in_the_chunks_of_dinov2s_training_are_those_of_the_network(tmp_path: Path) -> None:
    state = timm.create_model("test_vit", num_classes=0).state_dict()
    chunked = {
        re.sub(r"^blocks\.(\d+)", lambda found: f"blocks.{int(found[1]) // 2}.{found[1]}", key): value
        for key, value in state.items()
    }
    torch.save({"teacher": {f"backbone.{key}": value for key, value in chunked.items()}}, tmp_path / "w.pth")
    backbone = build_backbone("test_vit")
    load_weights(backbone, tmp_path / "w.pth", complete=True)
    assert all(torch.equal(value, backbone.net.model.state_dict()[key]) for key, value in state.items())
    others = timm.create_model("test_efficientnet").state_dict()  # has blocks.0.0, too
    assert to_timm(others).keys() == others.keys()


@pytest.mark.parametrize("beside", [False, True])
@torch.no_grad()
def test_position_embeddings_of_another_size_are_interpolated_as_timm_does(beside: bool, tmp_path: Path) -> None:
    """Also where the class token has none, as in DeiT-3."""
    own, other = (
        timm.create_model("test_vit", num_classes=0, no_embed_class=beside, img_size=size) for size in (160, 96)
    )
    nn.init.normal_(other.pos_embed)
    found = {f"model.{key}": value for key, value in other.state_dict().items()}
    resized = resize_positions(nn.ModuleDict({"model": own}), found)
    oracle = checkpoint_filter_fn(other.state_dict(), own)["pos_embed"]
    assert oracle.shape == own.pos_embed.shape != other.pos_embed.shape
    assert torch.equal(resized.pop("model.pos_embed"), oracle)
    assert all(resized[key] is found[key] for key in resized) and len(resized) == len(found) - 1
    if not beside:
        path, backbone = tmp_path / "other.pth", build_backbone("test_vit")
        torch.save(other.state_dict(), path)
        load_weights(backbone, path)
        assert torch.equal(backbone.net.model.pos_embed, oracle)


def test_what_is_of_another_transformer_is_refused(tmp_path: Path) -> None:
    state = timm.create_model("test_vit", num_classes=0).state_dict()
    path, backbone = tmp_path / "other.pth", build_backbone("test_vit")
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    deeper = {key.replace("blocks.5.", "blocks.6."): value for key, value in state.items() if "blocks.5." in key}
    for tensors, message in (
        (state | deeper, r"it has layers that the backbone lacks \(blocks\.6\.norm1\.weight"),
        (state | {"pos_embed": state["pos_embed"][:, :58]}, r"the shapes of model\.pos_embed differ"),
        ({key: value for key, value in state.items() if key != "pos_embed"}, r"\(not model\.pos_embed\)"),
        (timm.create_model("test_vit3", num_classes=0).state_dict(), "it has"),
    ):
        torch.save(tensors, path)
        with pytest.raises(UserError, match=rf"does not fit test_vit: .*{message}"):
            load_weights(backbone, path)
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())


def test_timm_weights_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """The download is replaced by a network made here, of the size that those weights were trained with."""
    fetched = timm.create_model("test_vit", num_classes=0, img_size=96, dynamic_img_size=True)
    nn.init.normal_(fetched.pos_embed)
    backbone, asked = build_backbone("test_vit"), []
    monkeypatch.setattr(timm, "create_model", lambda name, **options: asked.append((name, options)) or fetched)
    line = load_weights(backbone, "test_vit.r160_in1k")
    assert asked == [
        ("test_vit.r160_in1k", {"pretrained": True, "num_classes": 0, "dynamic_img_size": True, "in_chans": 3})
    ]
    assert line.startswith("test_vit with timm's test_vit.r160_in1k")
    assert torch.equal(backbone.net.model.blocks[3].attn.qkv.weight, fetched.blocks[3].attn.qkv.weight)
    assert backbone.net.model.pos_embed.shape == (1, 101, 64)
