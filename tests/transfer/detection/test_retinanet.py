"""RetinaNet's anchors, losses and detections, compared with plain loops and torchvision."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import RetinaNet as TorchvisionRetinaNet
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.image_list import ImageList

from densepath.nets.backbones import build_backbone
from densepath.transfer.detection.anchors import Anchors
from densepath.transfer.detection.detectors import BASE_LR
from densepath.transfer.detection.retinanet import RetinaNet

SIZES, STRIDES = (16, 24, 48, 64, 90), (8, 16, 32, 64, 128)


def build(classes: int = 2, channels: int = 32) -> RetinaNet:
    torch.manual_seed(0)
    return RetinaNet(build_backbone("test_resnet"), classes, channels, anchor_sizes=SIZES)


def plain_anchors(height: int, width: int) -> list[list[list[float]]]:
    """The anchors of each level, row by row, in float64."""
    levels = []
    for size, stride in zip(SIZES, STRIDES, strict=True):
        level = []
        for row in range(math.ceil(height / stride)):
            for column in range(math.ceil(width / stride)):
                for ratio in (0.5, 1.0, 2.0):
                    for octave in range(3):
                        side = size * 2 ** (octave / 3)
                        w, h = side / math.sqrt(ratio), side * math.sqrt(ratio)
                        x, y = column * stride, row * stride
                        level.append([x - w / 2, y - h / 2, x + w / 2, y + h / 2])
        levels.append(level)
    return levels


def iou(a: list[float], b: list[float]) -> float:
    inner = max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    return inner / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inner)


def test_anchors_are_three_octave_steps_in_three_shapes_on_the_true_strides() -> None:
    model = build().eval()
    pixels = torch.zeros(1, 3, 96, 160)  # P7 lies on an odd P6
    levels = list(model.features(pixels).values())
    assert [tuple(level.shape[-2:]) for level in levels] == [(12, 20), (6, 10), (3, 5), (2, 3), (1, 2)]
    (found,) = model.anchors(ImageList(pixels, [(96, 160)]), levels)
    expected = [anchor for level in plain_anchors(96, 160) for anchor in level]
    torch.testing.assert_close(found.double(), torch.tensor(expected).double(), rtol=0, atol=1e-4)


def test_p6_is_computed_from_f5_also_if_p5_would_fit() -> None:
    model = build(channels=build_backbone("test_resnet").channels[5]).eval()
    pixels = torch.randn(1, 3, 64, 64)
    levels, f5 = model.features(pixels), model.backbone(pixels)[5]
    extra = model.features.fpn.extra_blocks
    torch.testing.assert_close(levels["p6"], extra.p6(f5))
    torch.testing.assert_close(levels["p7"], extra.p7(levels["p6"].relu()))


def test_heads_are_four_convolutions_without_norm_and_a_low_prior() -> None:
    model = RetinaNet(build_backbone("test_resnet"), 3)
    heads = (model.head.classification_head, model.head.regression_head)
    for head in heads:
        shapes = [m.weight.shape for m in head.conv.modules() if isinstance(m, nn.Conv2d)]
        assert shapes == [(256, 256, 3, 3)] * 4
        assert not any(isinstance(m, nn.BatchNorm2d) for m in head.modules())
    assert heads[0].cls_logits.out_channels == 9 * 3 and heads[1].bbox_reg.out_channels == 9 * 4
    torch.testing.assert_close(heads[0].cls_logits.bias.sigmoid(), torch.full((27,), 0.01))
    assert (BASE_LR["retinanet"], BASE_LR["mask_rcnn_fpn"]) == (0.01, 0.02)


def plain_losses(logits: Tensor, deltas: Tensor, boxes: list[list[float]], labels: list[int]) -> tuple[float, float]:
    """Focal loss and L1 of one image, divided by its positive anchors."""
    anchors = [anchor for level in plain_anchors(64, 64) for anchor in level]
    overlaps = [[iou(anchor, box) for box in boxes] for anchor in anchors]
    best_of_box = [max(row[b] for row in overlaps) for b in range(len(boxes))]
    focal = l1 = 0.0
    positive = 0
    for anchor, row, logit, delta in zip(anchors, overlaps, logits.tolist(), deltas.tolist(), strict=True):
        top = max(row, default=0.0)
        match = row.index(top) if row else -1
        closest = any(abs(row[b] - best_of_box[b]) < 1e-6 for b in range(len(boxes)))
        if 0.4 <= top < 0.5 and not closest:
            continue
        found = labels[match] if top >= 0.5 or closest else None
        for k, value in enumerate(logit):
            p = 1 / (1 + math.exp(-value))
            hit = found is not None and k == found - 1
            focal += -0.25 * (1 - p) ** 2 * math.log(p) if hit else -0.75 * p**2 * math.log(1 - p)
        if found is not None:
            positive += 1
            (ax, ay, aw, ah), (bx, by, bw, bh) = (
                ((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1) for x1, y1, x2, y2 in (anchor, boxes[match])
            )
            wanted = ((bx - ax) / aw, (by - ay) / ah, math.log(bw / aw), math.log(bh / ah))
            l1 += sum(abs(d - w) for d, w in zip(delta, wanted, strict=True))
    return focal / max(1, positive), l1 / max(1, positive)


def test_losses_equal_plain_loops() -> None:
    model = build().train()
    torch.manual_seed(3)
    # At odd places, or two anchors would be closest to a box in float64 and one of them in float32.
    boxes = [[[4.1, 6.3, 30.2, 28.9], [20.7, 30.1, 61.4, 60.6], [21.3, 2.2, 60.9, 10.5]], [[8.6, 7.3, 50.2, 56.9]], []]
    labels = [[1, 2, 1], [2], []]
    pixels = torch.randn(3, 3, 64, 64)
    count = sum(len(level) for level in plain_anchors(64, 64))
    outputs = {"cls_logits": torch.randn(3, count, 2), "bbox_regression": torch.randn(3, count, 4)}
    model.head.forward = lambda levels: outputs
    targets: list[dict[str, Any]] = [
        {"boxes": torch.tensor(b).view(-1, 4), "labels": torch.tensor(c, dtype=torch.int64)}
        for b, c in zip(boxes, labels, strict=True)
    ]
    losses = model(ImageList(pixels, [(64, 64)] * 3), targets)
    each = [
        plain_losses(logit.double(), delta.double(), b, c)
        for logit, delta, b, c in zip(*outputs.values(), boxes, labels, strict=True)
    ]
    focal, l1 = (sum(values) / 3 for values in zip(*each, strict=True))
    assert losses["loss_class"].item() == pytest.approx(focal, rel=1e-4)
    assert losses["loss_box"].item() == pytest.approx(l1, rel=1e-4)


def test_detections_equal_torchvisions() -> None:
    model = build().eval()
    torch.manual_seed(5)
    levels = plain_anchors(96, 96)
    counts = [len(level) for level in levels]
    total = sum(counts)
    outputs = {"cls_logits": 2 * torch.randn(2, total, 2) - 2, "bbox_regression": 0.3 * torch.randn(2, total, 4)}
    model.head.forward = lambda levels: outputs
    model.detections_per_image = 40
    found = model.detect(ImageList(torch.zeros(2, 3, 96, 96), [(96, 96), (90, 80)]))

    oracle: Any = TorchvisionRetinaNet.__new__(TorchvisionRetinaNet)
    nn.Module.__init__(oracle)
    oracle.score_thresh, oracle.nms_thresh, oracle.topk_candidates, oracle.detections_per_img = 0.05, 0.5, 1000, 40
    oracle.box_coder = BoxCoder((1.0, 1.0, 1.0, 1.0))
    anchors = [torch.tensor(level) for level in levels]
    split = {key: list(value.split(counts, dim=1)) for key, value in outputs.items()}
    expected = oracle.postprocess_detections(split, [anchors, anchors], [(96, 96), (90, 80)])
    for ours, theirs in zip(found, expected, strict=True):
        assert len(ours["boxes"]) == 40
        torch.testing.assert_close(ours["scores"], theirs["scores"])
        torch.testing.assert_close(ours["boxes"], theirs["boxes"], rtol=1e-4, atol=1e-3)
        assert torch.equal(ours["labels"], theirs["labels"] + 1)


def test_small_anchors_keep_their_size() -> None:
    (anchors,) = Anchors([[8]], [4]).cell_anchors
    torch.testing.assert_close((anchors[:, 2:] - anchors[:, :2]).prod(1), torch.full((3,), 64.0))
