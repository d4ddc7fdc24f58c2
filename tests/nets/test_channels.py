"""Networks for grey images, and weights of color images in them."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors import safe_open

from densepath.core.errors import UserError
from densepath.nets.backbones import build_backbone
from densepath.nets.weights import load_weights, pixel_notes, save_backbone
from densepath.nets.weights.pixels import pixels_of_weights
from densepath.nets.weights.pretrained import pretrained_backbone
from densepath.sources.pixel_source import PixelSpec

NAMES = ["resnet18", "convnext_atto", "efficientnet_lite0", "regnetx_002", "vit_tiny_patch16_224"]
GREY = PixelSpec.default(1, (0.0, 4095.0))


@pytest.mark.parametrize("name", NAMES)
def test_weights_of_color_give_the_same_on_grey(name: str, tmp_path: Path) -> None:
    """With the same normalization of all channels, the summed filters see what three equal channels showed."""
    torch.manual_seed(3)
    color = build_backbone(name).double().eval()
    save_backbone(tmp_path / "color.safetensors", color.float())
    grey = build_backbone(name, 1)
    assert grey.in_channels == 1
    load_weights(grey, tmp_path / "color.safetensors")
    pixels = torch.rand(2, 1, 64, 64, dtype=torch.float64)
    ours, theirs = grey.double().eval()(pixels), color.double()(pixels.expand(-1, 3, -1, -1))
    assert ours.keys() == theirs.keys()
    for stage in ours:
        torch.testing.assert_close(ours[stage], theirs[stage], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224"])
def test_weights_of_grey_give_the_same_on_equal_channels(name: str, tmp_path: Path) -> None:
    grey = build_backbone(name, 1).eval()
    save_backbone(tmp_path / "grey.safetensors", grey)
    color = build_backbone(name).eval()
    load_weights(color, tmp_path / "grey.safetensors")
    pixels = torch.rand(2, 1, 64, 64)
    ours, theirs = grey(pixels), color(pixels.expand(-1, 3, -1, -1))
    for stage in ours:
        torch.testing.assert_close(ours[stage], theirs[stage], rtol=1e-4, atol=1e-4)


def test_weights_of_other_channels_are_refused(tmp_path: Path) -> None:
    save_backbone(tmp_path / "two.safetensors", build_backbone("resnet18", 2))
    with pytest.raises(UserError, match=r"fit resnet18: the shapes of conv1\.weight differ; their images have 2 ch"):
        load_weights(build_backbone("resnet18", 4), tmp_path / "two.safetensors")


def test_timm_weights_become_grey(monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = timm.create_model("resnet18", features_only=True)
    backbone = build_backbone("resnet18", 1)
    monkeypatch.setattr("densepath.nets.weights.backbone_weights.make_network", lambda name, pretrained: fetched)
    load_weights(backbone, "resnet18.a1_in1k")
    assert torch.equal(backbone.net.conv1.weight, fetched.conv1.weight.sum(1, keepdim=True))
    assert torch.equal(backbone.net.layer1[0].conv1.weight, fetched.layer1[0].conv1.weight)


def test_exported_weights_say_what_their_pixels_are(tmp_path: Path) -> None:
    backbone = build_backbone("resnet18", 1)
    save_backbone(tmp_path / "grey.safetensors", backbone, metadata=pixel_notes(GREY))
    with safe_open(tmp_path / "grey.safetensors", framework="pt") as file:
        said = file.metadata()
    assert (said["channels"], said["ndim"], said["window"]) == ("1", "2", "[0.0, 4095.0]")
    assert (said["mean"], said["std"]) == ("[0.449]", "[0.226]")
    assert pixels_of_weights(tmp_path / "grey.safetensors") == GREY
    timm.create_model("resnet18", in_chans=1, num_classes=0, checkpoint_path=str(tmp_path / "grey.safetensors"))
    with pytest.raises(UserError, match="torchvision's resnet18 takes images of 3 channels, and the weights 1;"):
        save_backbone(tmp_path / "other.safetensors", backbone, layout="torchvision")


def test_weights_that_say_nothing_are_shown_what_the_images_are(tmp_path: Path) -> None:
    torch.save(build_backbone("resnet18").net.state_dict(), tmp_path / "foreign.pth")
    for source in ("random", tmp_path / "foreign.pth"):
        assert pixels_of_weights(source) == PixelSpec()
        assert pixels_of_weights(source, GREY) == GREY
    inception = timm.get_pretrained_cfg("vit_tiny_patch16_224.augreg_in21k")
    assert pixels_of_weights("vit_tiny_patch16_224.augreg_in21k") == PixelSpec(mean=inception.mean, std=inception.std)
    assert pixels_of_weights("vit_tiny_patch16_224.augreg_in21k", GREY) == GREY


def test_weights_of_other_channels_than_the_images_are_shown_what_the_images_are(tmp_path: Path) -> None:
    save_backbone(tmp_path / "rgb.safetensors", build_backbone("resnet18"))
    assert pixels_of_weights(tmp_path / "rgb.safetensors", GREY) == GREY
    darker = PixelSpec(mean=(0.1, 0.2, 0.3))
    assert pixels_of_weights(tmp_path / "rgb.safetensors", darker) == PixelSpec()


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_a_network_sees_images_of_its_own_channels(channels: int) -> None:
    network = timm.create_model("test_resnet", in_chans=channels, features_only=True).eval()
    images = torch.randn(2, channels, 32, 32)
    found = pretrained_backbone("random", network)
    assert found.spec == PixelSpec.default(channels)
    assert torch.equal(found.backbone.eval()(images)[5], network(images)[-1])
    assert pretrained_backbone("random", build_backbone("test_resnet", channels)).spec.channels == channels
    volumes = pretrained_backbone("random", build_backbone("resnet18_3d", channels)).spec
    assert (volumes.ndim, volumes.channels) == (3, channels)
