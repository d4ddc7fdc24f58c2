"""The detector has the specified layers and exact geometry, and its batch norms can be re-estimated."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from densepath.nets.backbones import build_backbone
from densepath.transfer.detection.anchors import Anchors
from densepath.transfer.detection.config import ANCHOR_SIZES
from densepath.transfer.detection.detectors import DETECTORS
from densepath.transfer.detection.mask_heads import mask_targets
from densepath.transfer.detection.precise_norm import precise_batch_norm
from densepath.transfer.detection.roi_pool import RoIPool


def build(name: str = "mask_rcnn_fpn_small", backbone: str = "resnet18", **options: Any) -> Any:
    return DETECTORS[name](build_backbone(backbone), 1, **options)


@pytest.fixture(scope="module")
def full() -> Any:
    return build("mask_rcnn_fpn")


def square_target(size: int = 96) -> dict[str, Tensor]:
    masks = torch.zeros(1, size, size, dtype=torch.bool)
    masks[0, 24:72, 16:80] = True
    boxes = torch.tensor([[16.0, 24.0, 80.0, 72.0]])
    return {"boxes": boxes, "labels": torch.ones(1, dtype=torch.int64), "masks": masks, "scale": torch.ones(4)}


def test_proposals_and_heads_equal_the_paper(full: Any) -> None:
    rpn, heads = full.rpn, full.heads
    full.train()
    assert (rpn.pre_nms_top_n(), rpn.post_nms_top_n()) == (2000, 1000)
    full.eval()
    assert (rpn.pre_nms_top_n(), rpn.post_nms_top_n()) == (1000, 1000)
    assert (rpn.fg_bg_sampler.batch_size_per_image, rpn.fg_bg_sampler.positive_fraction) == (256, 0.5)
    assert (heads.fg_bg_sampler.batch_size_per_image, heads.fg_bg_sampler.positive_fraction) == (512, 0.25)
    assert (heads.score_thresh, heads.nms_thresh, heads.detections_per_img) == (0.05, 0.5, 100)
    assert (heads.box_roi_pool.size, heads.mask_roi_pool.size) == (7, 14)
    assert heads.box_head.fc6.weight.shape == (1024, 256 * 7 * 7)
    assert [m.weight.shape for m in heads.mask_head.modules() if isinstance(m, nn.Conv2d)] == [(256, 256, 3, 3)] * 4
    assert heads.box_predictor.cls_score.out_features == 2


def test_batch_norm_is_in_backbone_and_pyramid_and_not_in_the_heads(full: Any) -> None:
    def norms(module: nn.Module) -> int:
        return sum(isinstance(m, nn.BatchNorm2d) for m in module.modules())

    assert norms(full.features.fpn) == 8  # a lateral and an output convolution for each of four stages
    assert norms(full.backbone) == 20  # ResNet-18
    assert norms(full.rpn) == norms(full.heads) == 0
    assert all(m.bias is None for m in full.features.fpn.modules() if isinstance(m, nn.Conv2d))
    assert all(p.requires_grad for p in full.parameters())


def test_every_parameter_gets_a_gradient() -> None:
    model = build().train()
    target = square_target()
    losses = model(ImageList(torch.randn(1, 3, 96, 96), [(96, 96)]), [target])
    sum(losses.values()).backward()  # type: ignore[union-attr]
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_losses_of_an_untrained_detector_are_at_chance_level() -> None:
    model = build().train()
    losses = model(ImageList(torch.randn(1, 3, 96, 96), [(96, 96)]), [square_target()])
    for name in ("loss_objectness", "loss_class", "loss_mask"):
        assert losses[name].item() == pytest.approx(0.693, abs=0.05)


def test_images_without_instances_can_be_trained_on() -> None:
    model = build().train()
    target = square_target() | {
        "boxes": torch.zeros(0, 4),
        "labels": torch.zeros(0, dtype=torch.int64),
        "masks": torch.zeros(0, 96, 96, dtype=torch.bool),
    }
    losses = model(ImageList(torch.randn(1, 3, 96, 96), [(96, 96)]), [target])
    assert losses["loss_mask"] == 0 and losses["loss_box"] == 0
    sum(losses.values()).backward()  # type: ignore[union-attr]
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_anchors_have_one_size_per_level_and_the_true_strides() -> None:
    sides = [(24, 32), (12, 16), (6, 8), (3, 4), (2, 2)]  # of a 96 x 128 image: P6 has an odd P5 below it
    maps = [torch.zeros(1, 8, *side) for side in sides]
    made = Anchors([[size] for size in ANCHOR_SIZES], (4, 8, 16, 32, 64))
    anchors = made(ImageList(torch.zeros(1, 3, 96, 128), [(96, 128)]), maps)[0]
    start = 0
    for (height, width), size, stride in zip(sides, (32, 64, 128, 256, 512), (4, 8, 16, 32, 64), strict=True):
        level = anchors[start : start + 3 * height * width].view(height, width, 3, 4)
        start += level[..., 0].numel()
        centers = (level[..., :2] + level[..., 2:]) / 2
        columns, rows = stride * torch.arange(float(width)), stride * torch.arange(float(height))
        torch.testing.assert_close(centers[..., 0], columns[None, :, None].expand(height, width, 3), rtol=0, atol=1e-5)
        torch.testing.assert_close(centers[..., 1], rows[:, None, None].expand(height, width, 3), rtol=0, atol=1e-5)
        extent = level[0, 0, :, 2:] - level[0, 0, :, :2]
        torch.testing.assert_close(extent.prod(1).sqrt(), torch.full((3,), float(size)))
        torch.testing.assert_close(extent[:, 1] / extent[:, 0], torch.tensor([0.5, 1.0, 2.0]))
    assert start == len(anchors)


def ramp(height: int, width: int, stride: int) -> Tensor:
    """A map whose value at each position is its x coordinate in pixels."""
    return ((torch.arange(width) + 0.5) * stride).expand(1, 1, height, width).clone()


def test_pooling_samples_exact_positions_from_the_right_level() -> None:
    strides = {"2": 4, "3": 8, "4": 16, "5": 32}
    levels = {name: ramp(512 // s, 512 // s, s) for name, s in strides.items()}
    for name in levels:
        levels[name] = torch.cat((levels[name], torch.full_like(levels[name], float(name))), dim=1)
    boxes = torch.tensor([[40.0, 40.0, 96.0, 96.0], [100, 100, 212, 212], [80, 80, 304, 304], [32, 32, 480, 480]])
    pooled = RoIPool(7, (2, 3, 4, 5))(levels, [boxes], [(512, 512)])
    assert pooled[:, 1, 0, 0].tolist() == [2, 3, 4, 5]  # 56, 112, 224 and 448 pixels
    for row, (x1, _, x2, _) in zip(pooled[:, 0], boxes.tolist(), strict=True):
        centers = x1 + (torch.arange(7) + 0.5) * (x2 - x1) / 7
        torch.testing.assert_close(row, centers.expand(7, 7), rtol=0, atol=1e-3)


def test_mask_targets_are_the_mask_inside_the_box() -> None:
    masks = torch.zeros(2, 40, 60, dtype=torch.bool)
    masks[1, 10:24, 20:48] = True
    match = torch.tensor([1, 1, 0])
    whole = [20.0, 10.0, 48.0, 24.0]
    boxes = torch.tensor([whole, [6.0, 10.0, 34.0, 24.0], whole])
    targets = mask_targets(masks, match, boxes, 28)
    assert targets[0].all()
    assert torch.equal(targets[1], (torch.arange(28) >= 14).float().expand(28, 28))  # the right half
    assert not targets[2].any()


def test_precise_batch_norm_gives_the_mean_of_the_batches_statistics() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=0.3)).eval()
    batches = [torch.randn(2, 3, 9, 9) * (i + 1) for i in range(5)]
    before = [p.clone() for p in model.parameters()]
    precise_batch_norm(model, batches, model)
    features = [model[0](batch).detach().transpose(0, 1).flatten(1) for batch in batches]
    norm = model[1]
    assert isinstance(norm, nn.BatchNorm2d)
    torch.testing.assert_close(norm.running_mean, torch.stack([f.mean(1) for f in features]).mean(0))
    torch.testing.assert_close(norm.running_var, torch.stack([f.var(1) for f in features]).mean(0))
    assert norm.momentum == 0.3 and not model.training
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
