"""Each kind of backbone overfits one image; decoders keep their size; pre-trained decoders are loaded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from densepath.core.errors import UserError
from densepath.nets.backbones import build_backbone
from densepath.transfer.segment.config import Head, SegmentConfig
from densepath.transfer.segment.loss import segmentation_loss
from densepath.transfer.segment.network import SegmentationNet
from densepath.transfer.segment.starting_weights import load_decoder_weights


def disc(side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A noisy image and its classes: a disc, and a smaller one in it."""
    grid = torch.stack(torch.meshgrid(*[torch.arange(side).float()] * 2, indexing="ij"))
    far = (grid - side * 0.45).norm(dim=0)
    classes = (far < side * 0.35).long() + (far < side * 0.2).long()
    return (torch.randn(1, 1, side, side) * 0.3 + classes).repeat(1, 3, 1, 1), classes[None]


@pytest.mark.parametrize(
    ("name", "head", "side"),
    [
        ("test_resnet", "unet", 64),
        ("test_resnet", "fcn", 96),
        ("regnetx_002", "unet", 64),
        ("test_convnext", "unet", 64),
        ("test_vit", "unet", 64),
    ],
)
def test_overfits_one_image(name: str, head: Head, side: int) -> None:
    torch.manual_seed(0)
    net = SegmentationNet(build_backbone(name, 3), 3, head)
    pixels, classes = disc(side)
    optimizer = torch.optim.Adam(net.parameters(), lr=4e-3)
    for _ in range(200):  # 20 to 60 are enough on most machines
        optimizer.zero_grad()
        logits = net(pixels)
        segmentation_loss(logits, classes, "dice_ce").backward()
        optimizer.step()
        found = logits.argmax(1)
        both = [((found == k) & (classes == k)).sum() for k in (1, 2)]
        sizes = [(found == k).sum() + (classes == k).sum() for k in (1, 2)]
        dice = [float(2 * b / s) for b, s in zip(both, sizes, strict=True)]
        if min(dice) > 0.95:
            break
    assert min(dice) > 0.95, dice


def test_the_decoder_of_a_run_is_loaded(tmp_path: Path) -> None:
    net, other = (SegmentationNet(build_backbone("test_resnet", 3), 3) for _ in range(2))
    (tmp_path / "exported").mkdir()
    state = {f"decoder.{name}": value for name, value in other.decoder.state_dict().items()}
    save_file(state, tmp_path / "exported/decoder.safetensors")
    config = SegmentConfig(data="d", out="o", weights=tmp_path)
    assert "decoder" in load_decoder_weights(net, config)
    mine = net.decoder.state_dict()
    assert all(torch.equal(mine[name], value) for name, value in other.decoder.state_dict().items())
    assert load_decoder_weights(net, replace(config, decoder="random")) == ""
    with pytest.raises(UserError, match="does not fit the U-Net decoder"):
        load_decoder_weights(SegmentationNet(build_backbone("test_convnext", 3), 3), config)


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_vit", "vit_small_patch14_dinov2"])
def test_logits_have_the_size_of_the_image(name: str) -> None:
    net = SegmentationNet(build_backbone(name, 3), 4).eval()
    patch = net.backbone.patch_size
    size = (3 * patch, 5 * patch) if patch > 1 else (37, 50)
    with torch.no_grad():
        assert net(torch.zeros(1, 3, *size)).shape == (1, 4, *size)
