"""Arguments of a backbone that tensors do not show: none is ignored in silence."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from densepath.core.errors import UserError
from densepath.nets.backbones import build_backbone
from densepath.nets.teachers import build_teacher
from densepath.nets.weights import load_weights, save_backbone
from densepath.nets.weights.pretrained import pretrained_backbone

ARCHITECTURE = "vit_tiny_patch16_224"
SMALL = {"embed_dim": 96, "depth": 2, "img_size": 64}


def folder_of(folder: Path, given: Any, own: dict[str, Any] | None = None) -> torch.nn.Module:
    """A published network with ``own`` arguments, whose configuration has the ``given`` ones."""
    torch.manual_seed(0)
    network: torch.nn.Module = timm.create_model(ARCHITECTURE, num_classes=0, **SMALL | (own or {}))
    save_file(network.state_dict(), folder / "model.safetensors")
    pixels = {"mean": [0.5] * 3, "std": [0.5] * 3}
    notes = {"architecture": ARCHITECTURE, "model_args": given, "pretrained_cfg": pixels}
    (folder / "config.json").write_text(json.dumps(notes))
    return network.eval()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vit_tiny_patch16_224(heads=12)", "timm's vit_tiny_patch16_224 has no argument heads"),
        ("resnet18(num_heads=3)", "timm's resnet18 has no argument num_heads"),
        ("hrnet_w18_small(foo=2)", "timm's hrnet_w18_small has no argument foo"),
        ("vit_tiny_patch16_224(num_heads=5)", "timm cannot build .* divisible by num_heads"),
        ("vit_tiny_patch16_224(act_layer='nope')", "timm cannot build .*nope"),
        ("resnet18(pretrained=True)", "the argument pretrained, which has no effect there"),
        ("resnet18(in_chans=1)", "the argument in_chans, which has no effect there"),
        ("vit_tiny_patch16_224(num_heads=3, num_heads=6)", "is not the name of a backbone"),
    ],
)
def test_a_wrong_argument_is_refused_by_its_name(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_backbone(name)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({**SMALL, "heads": 6}, "has no argument heads"),
        ({**SMALL, "num_heads": "6"}, "timm cannot build"),
        ({**SMALL, "scale_attn_norm": True}, "attn.norm.weight"),  # the file has no such tensors
        (["num_heads"], "model_args in the configuration of a model is not an object"),
    ],
)
def test_arguments_of_a_configuration_that_do_not_fit_are_refused(given: Any, message: str, tmp_path: Path) -> None:
    folder_of(tmp_path, given, {"num_heads": 3})
    with pytest.raises(UserError, match=message):
        pretrained_backbone(tmp_path)


@pytest.mark.parametrize("own", [{"num_heads": 6}, {"act_layer": "relu", "num_heads": 3}])
def test_arguments_that_no_shape_shows_are_those_of_the_configuration(own: dict[str, Any], tmp_path: Path) -> None:
    """They change the features of images, as timm's own network with them shows; those of training do not matter."""
    network = folder_of(tmp_path, {**SMALL, **own, "drop_path_rate": 0.1, "weight_init": "skip"}, own)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        trained = pretrained_backbone(tmp_path).backbone.eval()
        ours = trained(images)[4].flatten(2).transpose(1, 2)
        torch.testing.assert_close(ours, network.forward_features(images)[:, 1:], rtol=0, atol=1e-5)
        plain = build_backbone(f"{ARCHITECTURE}(embed_dim=96, depth=2, img_size=64, num_heads=2)")
        line = load_weights(plain, tmp_path)
        assert not torch.allclose(plain.eval()(images)[4].flatten(2).transpose(1, 2), ours, atol=1e-3)
    assert (
        f"in training num_heads was {own['num_heads']}" in line and f": --backbone {shlex.quote(trained.name)}" in line
    )


# 17 positions are also those of a square and a class token, and 25 those of a square without one.
@pytest.mark.parametrize("size", [(32, 128), (64, 96), (64, 80)])
@pytest.mark.parametrize("of_network", [True, False])
def test_positions_of_oblong_images_are_not_taken_for_a_square(
    size: tuple[int, int], of_network: bool, tmp_path: Path
) -> None:
    others = {name: value for name, value in SMALL.items() if name != "img_size"}
    folder_of(tmp_path, {**others, "img_size": size} if of_network else others, {"img_size": size})
    if not of_network:
        config = json.loads((tmp_path / "config.json").read_text())
        config["pretrained_cfg"]["input_size"] = [3, *size]
        (tmp_path / "config.json").write_text(json.dumps(config))
    message = f"has the positions of images of {size[0]} x {size[1]} px, .* as backbone, built by timm"
    with pytest.raises(UserError, match=message):
        pretrained_backbone(tmp_path)
    with pytest.raises(UserError, match=message):
        build_teacher(str(tmp_path))
    turned, own = (
        timm.create_model(ARCHITECTURE, num_classes=0, dynamic_img_size=True, **SMALL | {"img_size": sides})
        for sides in (size[::-1], size)
    )
    with pytest.raises(UserError, match=message):
        pretrained_backbone(tmp_path, turned)
    found = pretrained_backbone(tmp_path, own).backbone.net.state_dict()
    assert torch.equal(found["model.pos_embed"], load_file(tmp_path / "model.safetensors")["pos_embed"])


@pytest.mark.parametrize("size", [64, {"height": 64, "width": 64}, [3, 64, 64], [3, 32, 128]])
def test_the_input_size_of_a_square_network_may_have_any_form(size: Any, tmp_path: Path) -> None:
    network = folder_of(tmp_path, {**SMALL, "num_heads": 3})
    config = json.loads((tmp_path / "config.json").read_text())
    config["pretrained_cfg"]["input_size"] = size  # of the images that are recommended
    (tmp_path / "config.json").write_text(json.dumps(config))
    images = torch.rand(1, 3, 64, 64)
    ours = pretrained_backbone(tmp_path).backbone.eval()(images)[4].flatten(2).transpose(1, 2)
    torch.testing.assert_close(ours, network.forward_features(images)[:, 1:], rtol=0, atol=1e-5)


def test_arguments_as_timm_has_them_are_no_difference(tmp_path: Path) -> None:
    """Many published configurations name them."""
    folder_of(tmp_path, {**SMALL, "num_heads": 3, "pos_embed": "learn", "proj_bias": True}, {"num_heads": 3})
    plain = build_backbone(f"{ARCHITECTURE}(embed_dim=96, depth=2, img_size=64, num_heads=3)")
    assert "in training" not in load_weights(plain, tmp_path)


def test_other_heads_than_those_of_a_file_are_reported(tmp_path: Path) -> None:
    few, many = (f"{ARCHITECTURE}(embed_dim=96, depth=2, img_size=64, num_heads={heads})" for heads in (2, 6))
    save_backbone(tmp_path / "w.safetensors", build_backbone(many))
    assert "in training" not in load_weights(build_backbone(many), tmp_path / "w.safetensors")
    line = load_weights(build_backbone(few), tmp_path / "w.safetensors")
    assert "in training num_heads was 6" in line
    larger = many.replace("64", "96")  # shapes show it, and positions are interpolated
    assert "in training" not in load_weights(build_backbone(larger), tmp_path / "w.safetensors")


@pytest.mark.parametrize(("arguments", "assumed"), [("", True), (", num_heads=3", False), (", num_heads=6", False)])
def test_heads_that_the_user_names_are_not_assumed(arguments: str, assumed: bool, tmp_path: Path) -> None:
    named = build_backbone(f"{ARCHITECTURE}(depth=1{arguments})")
    torch.save(named.net.state_dict(), tmp_path / "w.pth")
    assert ("heads of 64 channels are assumed" in load_weights(named, tmp_path / "w.pth")) == assumed


def test_assumed_heads_are_reported(tmp_path: Path) -> None:
    folder_of(tmp_path, {}, {"num_heads": 3})
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit", "hidden_size": 96}))
    assert "heads of 64 channels and mean and std of ImageNet are assumed" in pretrained_backbone(tmp_path).line
