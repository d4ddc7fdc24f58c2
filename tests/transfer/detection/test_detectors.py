"""Each detector has the specified layers: C4 the backbone's own stage 5, DC5 its exact dilation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from densepath.core.errors import UserError
from densepath.nets.backbones import build_backbone
from densepath.nets.backbones.dilation import dilate_last_stage
from densepath.nets.weights import load_weights, save_backbone
from densepath.transfer.detection.detector_file import DetectorNotes, load_detector, save_detector
from densepath.transfer.detection.detectors import DETECTORS, TRANSFORMER_DETECTORS
from densepath.transfer.detection.mask_heads import box_losses
from densepath.transfer.detection.precise_norm import precise_batch_norm

SMALL = [name for name in DETECTORS if name.endswith("_small")]
WITH_MASKS = [name for name in SMALL if not name.startswith("retinanet")]
FOR_CONVNETS = [name for name in DETECTORS if name not in TRANSFORMER_DETECTORS]
TINY = {name: "test_vit" if name in TRANSFORMER_DETECTORS else "test_resnet" for name in DETECTORS}


def build(name: str, backbone: str | None = None, **options: Any) -> Any:
    torch.manual_seed(0)
    return DETECTORS[name](build_backbone(backbone or TINY[name]), 1, **options)


def images(count: int = 1, seed: int = 0) -> ImageList:
    pixels = torch.randn(count, 3, 96, 96, generator=torch.Generator().manual_seed(seed))
    return ImageList(pixels, [(96, 96)] * count)


def square() -> dict[str, Tensor]:
    masks = torch.zeros(1, 96, 96, dtype=torch.bool)
    masks[0, 24:72, 16:80] = True
    boxes = torch.tensor([[16.0, 24.0, 80.0, 72.0]])
    return {"boxes": boxes, "labels": torch.ones(1, dtype=torch.int64), "masks": masks, "scale": torch.ones(4)}


def nothing() -> dict[str, Tensor]:
    return square() | {
        "boxes": torch.zeros(0, 4),
        "labels": torch.zeros(0, dtype=torch.int64),
        "masks": torch.zeros(0, 96, 96, dtype=torch.bool),
    }


def shake_norms(network: nn.Module) -> None:
    """Give batch norms statistics and weights other than their initial values."""
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for tensor in (norm.running_mean, norm.bias):
                nn.init.normal_(tensor, std=0.1)  # type: ignore[arg-type]
            for tensor in (norm.running_var, norm.weight):
                nn.init.uniform_(tensor, 0.5, 1.5)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("targets", [[square(), nothing()], [nothing(), nothing()]], ids=["some", "none"])
def test_every_parameter_gets_a_finite_gradient(name: str, targets: list[dict[str, Tensor]]) -> None:
    model = build(name).train()
    sum(model(images(2), targets).values()).backward()
    trained = {key: p for key, p in model.named_parameters() if p.requires_grad}
    assert [key for key, p in trained.items() if p.grad is None or not p.grad.isfinite().all()] == []
    touched = {key.split(".")[0] for key, p in trained.items() if p.grad.abs().sum() > 0}
    assert "features" in touched


@pytest.mark.parametrize("name", SMALL)
def test_boxes_and_losses_keep_full_precision_in_mixed_precision(name: str) -> None:
    model = build(name)
    if not model.finds_masks:
        nn.init.zeros_(model.head.classification_head.cls_logits.bias)
    with torch.autocast("cpu", torch.bfloat16):
        losses = model.train()(images(2), [square(), square()])
        found = model.eval().detect(images())[0]
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())
    assert len(found["boxes"]) and found["boxes"].dtype == found["scores"].dtype == torch.float32


@pytest.mark.parametrize("name", WITH_MASKS)
def test_losses_of_an_untrained_detector_are_at_chance_level(name: str) -> None:
    losses = build(name).train()(images(), [square()])
    for loss in ("loss_objectness", "loss_class", "loss_mask"):
        assert losses[loss].item() == pytest.approx(0.693, abs=0.05)


@pytest.mark.parametrize("name", SMALL)
def test_a_detector_can_be_saved_and_loaded(name: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"anchor_sizes": (8, 16, 32, 64, 96), "detections_per_image": 7}
    notes = DetectorNotes(name, TINY[name], (3, 8), ("a", "b"), 96, (0.5,) * 3, (0.2,) * 3, **options)
    model = notes.build().eval()
    shake_norms(model)
    if not model.finds_masks:
        nn.init.zeros_(model.head.classification_head.cls_logits.bias)  # or it would find nothing before it is trained
    save_detector(tmp_path / "d.safetensors", model, notes)
    loaded, read = load_detector(tmp_path / "d.safetensors")
    assert read == notes
    before, after = (m.detect(images(2)) for m in (model, loaded))
    assert all(torch.equal(one[key], two[key]) for one, two in zip(before, after, strict=True) for key in one)
    assert all(len(found["boxes"]) <= 7 for found in after)
    assert sum(len(found["boxes"]) for found in after) > 0
    assert ("masks" in after[0]) == model.finds_masks == (name in WITH_MASKS)


def test_c4_has_detectron2s_proposals_and_no_separate_head() -> None:
    model = build("mask_rcnn_c4", "resnet18")
    assert model.rpn.anchor_generator.num_anchors_per_location() == [15]
    assert model.rpn.train().pre_nms_top_n() == 12000 and model.rpn.post_nms_top_n() == 2000
    assert model.rpn.eval().pre_nms_top_n() == 6000 and model.rpn.post_nms_top_n() == 1000
    assert model.rpn.head.cls_logits.in_channels == 256  # f4
    assert model.heads.fg_bg_sampler.batch_size_per_image == 512
    assert model.heads.box_predictor.cls_score.in_features == model.heads.mask_predictor.conv5_mask.in_channels == 512
    assert model.heads.mask_predictor.conv5_mask.out_channels == 256
    names = {key.rpartition(".")[0] for key in model.heads.state_dict()}
    predictors = {"box_predictor.cls_score", "box_predictor.bbox_pred", "mask_predictor.conv5_mask"}
    assert names == predictors | {"mask_predictor.mask_fcn_logits", "box_roi_pool.norm"}
    assert build("mask_rcnn_c4_small").train().eval().detect(images())[0]["masks"].shape[1:] == (14, 14)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_the_head_of_c4_is_the_pretrained_stage_5(name: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    pretrained = build_backbone(name).eval()
    shake_norms(pretrained)
    save_backbone(tmp_path / "w.safetensors", pretrained)
    model = build("mask_rcnn_c4_small", name).eval()
    load_weights(model.backbone, tmp_path / "w.safetensors")
    state = model.state_dict()
    for key, value in pretrained.state_dict().items():
        assert torch.equal(state[f"features.backbone.{key}"], value)

    # For 14 x 14 positions of f4, RoIAlign to 14 x 14 returns the map itself.
    pixels = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        maps = model.features(pixels)
        assert list(maps) == ["4"]
        whole = torch.tensor([[0.0, 0.0, 224.0, 224.0]])
        pooled = model.heads.box_roi_pool(maps, [whole], [(224, 224)])
        expected = pretrained(pixels)[5] / (1 + 1e-5) ** 0.5  # the extra norm, untrained
    torch.testing.assert_close(pooled, expected, rtol=1e-4, atol=1e-4)


def test_c4_runs_its_head_once_per_step_and_masks_use_the_boxes_features() -> None:
    model = build("mask_rcnn_c4_small").train()
    seen: dict[str, Tensor] = {}
    model.heads.box_head.register_forward_hook(lambda module, inputs, output: seen.update(boxes=inputs[0]))
    model.heads.mask_head.register_forward_hook(lambda module, inputs, output: seen.update(masks=inputs[0]))
    model(images(2), [square(), square()])
    assert model.heads.box_roi_pool.norm.num_batches_tracked == 1
    assert model.backbone.net.layer4[0].bn1.num_batches_tracked == 1
    rows = [next(i for i, row in enumerate(seen["boxes"]) if torch.equal(row, mask)) for mask in seen["masks"]]
    assert 0 < len(rows) < len(seen["boxes"]) and rows == sorted(rows)


@pytest.mark.parametrize("name", ["mask_rcnn_c4_small", "mask_rcnn_fpn_small"])
def test_norms_of_the_head_are_re_estimated_on_training_boxes(name: str) -> None:
    model = build(name)
    norms = {key: m for key, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    inputs: dict[str, list[Tensor]] = {key: [] for key in norms}
    for key, norm in norms.items():
        norm.register_forward_hook(lambda module, given, output, key=key: inputs[key].append(given[0]))
    batches = [images(2, seed) for seed in range(3)]
    precise_batch_norm(model, batches, lambda batch: model.run_batch_norms(batch, [square(), square()]))
    for key, norm in norms.items():
        assert len(inputs[key]) == 3
        means = torch.stack([x.double().mean((0, 2, 3)) for x in inputs[key]]).mean(0)
        torch.testing.assert_close(norm.running_mean.double(), means, rtol=1e-3, atol=1e-4)
    boxes = {len(x) for key in inputs if key.startswith(("heads", "features.backbone.net.layer4")) for x in inputs[key]}
    assert (max(boxes) > 2) == (name == "mask_rcnn_c4_small")


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "regnetx_002"])
def test_every_second_position_of_a_dilated_stage_equals_the_original_stage(name: str) -> None:
    torch.manual_seed(0)
    backbone = build_backbone(name).eval().double()
    shake_norms(backbone)
    keys, pixels = list(backbone.state_dict()), torch.randn(1, 3, 96, 128, dtype=torch.float64)
    with torch.no_grad():
        before = backbone(pixels)
        dilate_last_stage(backbone)
        after = backbone(pixels)
    assert list(backbone.state_dict()) == keys and not backbone.training
    assert after[5].shape[-2:] == after[4].shape[-2:] == (6, 8)
    torch.testing.assert_close(after[4], before[4])
    torch.testing.assert_close(after[5][..., ::2, ::2], before[5])


def test_dc5_has_detectron2s_heads_on_a_single_map() -> None:
    model = build("mask_rcnn_dc5", "resnet18")
    assert model.rpn.anchor_generator.num_anchors_per_location() == [15]
    assert model.rpn.train().pre_nms_top_n() == 12000 and model.rpn.post_nms_top_n() == 2000
    assert model.rpn.eval().pre_nms_top_n() == 6000 and model.rpn.post_nms_top_n() == 1000
    assert model.heads.box_head.fc6.weight.shape == (1024, 512 * 7 * 7)
    masks = [m.weight.shape for m in model.heads.mask_head.modules() if isinstance(m, nn.Conv2d)]
    assert masks == [(256, 512, 3, 3)] + [(256, 256, 3, 3)] * 3
    assert {k: v.shape for k, v in model.features(torch.zeros(1, 3, 64, 96)).items()} == {"4": (1, 512, 4, 6)}


@pytest.mark.parametrize(
    ("name", "backbone", "message"),
    [
        ("mask_rcnn_c4", "test_efficientnet", "cannot run only its last stage"),
        ("mask_rcnn_dc5", "densenet121", "cannot be dilated"),
    ],
)
def test_a_backbone_that_does_not_fit_is_named(name: str, backbone: str, message: str) -> None:
    with pytest.raises(UserError, match=f"{backbone} {message}|{message}"):
        build(name, backbone)


@pytest.mark.parametrize("name", SMALL)
def test_anchor_sizes_that_do_not_fit_are_refused(name: str) -> None:
    wrong: list[tuple[int, ...]] = [(), (32, 64, 0, 256, 512)]
    if name in ("mask_rcnn_fpn_small", "retinanet_small", "vitdet_small"):
        wrong.append((32, 64))
    for sizes in wrong:
        with pytest.raises(UserError, match="anchor_sizes are"):
            build(name, anchor_sizes=sizes)


def test_more_objects_get_more_proposals_in_testing() -> None:
    rpn = build("mask_rcnn_fpn", detections_per_image=400).rpn
    assert (rpn.train().pre_nms_top_n(), rpn.post_nms_top_n()) == (2000, 1000)
    assert (rpn.eval().pre_nms_top_n(), rpn.post_nms_top_n()) == (4000, 4000)
    assert build("mask_rcnn_fpn", detections_per_image=50).rpn.eval().pre_nms_top_n() == 1000


@pytest.mark.parametrize(
    ("name", "backbone"),
    [(name, backbone) for name in SMALL if name in FOR_CONVNETS for backbone in ("resnet34", "convnext_atto")]
    + [("vitdet_small", "test_vit3"), ("vitdet_small", "deit_tiny_distilled_patch16_224")],
)
def test_other_backbones_work(name: str, backbone: str) -> None:
    model = build(name, backbone).train()
    losses = model(images(), [square()])
    assert all(loss.isfinite() for loss in losses.values())


@pytest.mark.parametrize("detector", FOR_CONVNETS)
def test_a_transformer_is_refused(detector: str) -> None:
    notes = DetectorNotes(detector, "test_vit", (1,), ("gland",), 64, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
    message = f"{detector} needs the stages f2 to f5, but test_vit has only f4; use the detector vitdet"
    with pytest.raises(UserError, match=message):
        notes.build()


@pytest.mark.parametrize("name", ["mask_rcnn_fpn_small", "mask_rcnn_dc5_small", "vitdet_small"])
def test_the_box_head_starts_as_in_detectron2(name: str) -> None:
    """Weights are uniform with standard deviation 1 / sqrt(inputs): c2_xavier_fill. torchvision's have 0.58 of that."""
    heads = build(name).heads
    layers = [m for m in heads.box_head.modules() if isinstance(m, nn.Linear)]
    assert len(layers) == (1 if name == "vitdet_small" else 2)
    for layer in layers:
        assert layer.weight.std().item() * layer.in_features**0.5 == pytest.approx(1, abs=0.02)
        assert layer.weight.abs().max().item() * layer.in_features**0.5 == pytest.approx(3**0.5, abs=0.01)
        assert not layer.bias.any()
    assert not heads.mask_predictor.conv5_mask.bias.any()
    assert heads.box_predictor.cls_score.weight.std().item() == pytest.approx(0.01, rel=0.1)


def test_boxes_have_an_l1_loss_in_proposals_and_heads() -> None:
    """Detectron2's, by a loop: absolute errors, however small, over the number of all sampled boxes."""
    generator = torch.Generator().manual_seed(0)
    deltas, wanted = torch.randn(40, 4, generator=generator) / 9, torch.randn(40, 4, generator=generator) / 9
    labels = torch.arange(40) % 4 - 1  # of anchors: -1 is not sampled
    rpn = build("mask_rcnn_fpn_small").rpn
    objectness = torch.randn(40, 1, generator=generator)
    parts = [labels[:25].float(), labels[25:].float()], [wanted[:25], wanted[25:]]
    found = rpn.compute_loss(objectness, deltas, [part.clamp(max=1) for part in parts[0]], parts[1])[1]
    errors = [sum(abs(float(a) - float(b)) for a, b in zip(deltas[i], wanted[i], strict=True)) for i in range(40)]
    positive = [i for i in range(40) if labels[i] > 0]
    assert found.item() == pytest.approx(sum(errors[i] for i in positive) / 30, rel=1e-5)

    classes = labels + 1  # 0 is the background
    own = torch.randn(40, 16, generator=generator)
    for i in range(40):
        own[i, 4 * classes[i] : 4 * classes[i] + 4] = deltas[i]
    logits = torch.randn(40, 4, generator=generator)
    loss_class, loss_box = box_losses(logits, own, classes, wanted)
    assert loss_box.item() == pytest.approx(sum(errors[i] for i in range(40) if classes[i]) / 40, rel=1e-5)
    picked = logits.log_softmax(1)[torch.arange(40), classes]
    assert loss_class.item() == pytest.approx(-picked.mean().item(), rel=1e-5)
