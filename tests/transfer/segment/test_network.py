"""Each kind of backbone overfits one image; decoders keep their size; pre-trained decoders are loaded."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from densepath.nets.backbones import build_backbone
from densepath.transfer.segment.config import Head
from densepath.transfer.segment.loss import segmentation_loss
from densepath.transfer.segment.network import SegmentationNet


def disc(side: int, d: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A noisy image and its classes: a disc, or ball, and a smaller one in it."""
    grid = torch.stack(torch.meshgrid(*[torch.arange(side).float()] * d, indexing="ij"))
    far = (grid - side * 0.45).norm(dim=0)
    classes = (far < side * 0.35).long() + (far < side * 0.2).long()
    pixels = torch.randn(1, 1, *[side] * d) * 0.3 + classes
    return pixels.expand(-1, 3 if d == 2 else 1, *[-1] * d).clone(), classes[None]


@pytest.mark.parametrize(
    ("name", "head", "side", "steps"),
    [
        ("test_resnet", "unet", 64, 60),
        ("test_resnet", "fcn", 64, 60),
        ("regnetx_002", "unet", 64, 40),
        ("test_convnext", "unet", 64, 80),
        ("test_vit", "unet", 64, 120),
        ("resnet10_3d_w4", "unet", 24, 60),
    ],
)
def test_overfits_one_image(name: str, head: Head, side: int, steps: int) -> None:
    torch.manual_seed(0)
    d = 3 if "_3d" in name else 2
    net = SegmentationNet(build_backbone(name, 3 if d == 2 else 1), 3, head)
    pixels, classes = disc(side, d)
    optimizer = torch.optim.Adam(net.parameters(), lr=4e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        segmentation_loss(net(pixels), classes, "dice_ce").backward()
        optimizer.step()
    found = net(pixels).argmax(1)
    for k in (1, 2):
        share = 2 * ((found == k) & (classes == k)).sum() / ((found == k).sum() + (classes == k).sum())
        assert share > 0.95, f"class {k}: {share}"


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_vit", "vit_small_patch14_dinov2"])
def test_logits_have_the_size_of_the_image(name: str) -> None:
    net = SegmentationNet(build_backbone(name, 3), 4).eval()
    patch = net.backbone.patch_size
    size = (3 * patch, 5 * patch) if patch > 1 else (37, 50)
    with torch.no_grad():
        assert net(torch.zeros(1, 3, *size)).shape == (1, 4, *size)
    assert np.prod(size) > 0
