"""ViTDet: windowed attention, its pyramid and heads, and its layer-wise learning rates."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Attention
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from densepath.core.errors import UserError
from densepath.nets.backbones import build_backbone
from densepath.nets.weights import load_weights, save_backbone
from densepath.training.hardware import choose_hardware
from densepath.transfer.detection.detection_task import DetectionTask
from densepath.transfer.detection.detector_file import DetectorNotes
from densepath.transfer.detection.detectors import BASE_LR, DETECTORS
from densepath.transfer.detection.fine_tuning import settle_batch_norm
from densepath.transfer.detection.simple_pyramid import SimpleFeaturePyramid
from densepath.transfer.detection.solver import make_solver
from densepath.transfer.detection.windowed_transformer import WindowAttention, WindowedTransformer, global_blocks

IMAGES = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))


def notes_of(detector: str, backbone: str) -> DetectorNotes:
    return DetectorNotes(detector, backbone, (1,), ("gland",), 96, (0.5,) * 3, (0.2,) * 3)


def shaken(module: Any) -> Any:
    """A module with random norms, biases and tables instead of their neutral initial values, in eval mode."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return module.eval()


@pytest.mark.parametrize("name", ["test_vit", "test_vit3", "deit3_small_patch16_224"])
@torch.no_grad()
def test_with_zero_tables_and_full_windows_it_equals_the_plain_transformer_without_class_token(
    name: str, tmp_path: Path
) -> None:
    backbone = shaken(build_backbone(name))
    network = timm.create_model(
        name, num_classes=0, dynamic_img_size=True, class_token=False, reg_tokens=0, global_pool="avg", fc_norm=False
    )
    state = {key.removeprefix("net.model."): value for key, value in backbone.state_dict().items()}
    state["pos_embed"] = state["pos_embed"][:, -network.pos_embed.shape[1] :]
    assert not network.load_state_dict(state, strict=False).missing_keys
    tokens = network.eval().forward_features(IMAGES).transpose(1, 2).unflatten(2, (4, 6))

    save_backbone(tmp_path / "w.safetensors", backbone)
    transformer = WindowedTransformer(build_backbone(name)).eval()
    count = len(backbone.state_dict())
    assert f"with {count} of {count} tensors" in load_weights(transformer.backbone, tmp_path / "w.safetensors")
    torch.testing.assert_close(transformer(IMAGES), tokens)
    for attend in transformer.attention:
        attend.rows.add_(1.0)  # a bias that is the same for all keys is none; one that depends on the distance is
    torch.testing.assert_close(transformer(IMAGES), tokens, rtol=1e-3, atol=1e-3)
    for attend in transformer.attention:
        attend.rows[len(attend.rows) // 2].add_(1.0)
    assert (transformer(IMAGES) - tokens).abs().max() > 0.01


def attention_in_loops(attention: Any, rows: Tensor, columns: Tensor, window: Tensor) -> Tensor:
    """Attention within a window (h, w, C) as loops over heads, queries and keys."""
    height, width, channels = window.shape
    size = channels // attention.num_heads
    result = torch.zeros_like(window)
    for head in range(attention.num_heads):
        part = slice(head * size, (head + 1) * size)
        query, key, value = (
            window @ weight[part].T + bias[part]
            for weight, bias in zip(attention.qkv.weight.chunk(3), attention.qkv.bias.chunk(3), strict=True)
        )
        for i in range(height):
            for j in range(width):
                q = query[i, j]
                weights = torch.zeros(height, width, dtype=window.dtype)
                for y in range(height):
                    for x in range(width):
                        place = q @ rows[i - y + len(rows) // 2] + q @ columns[j - x + len(columns) // 2]
                        weights[y, x] = (q @ key[y, x] / size**0.5 + place).exp()
                result[i, j, part] = ((weights / weights.sum())[..., None] * value).sum((0, 1))
    return result @ attention.proj.weight.T + attention.proj.bias


@pytest.mark.parametrize(("window", "height", "width"), [(3, 4, 6), (3, 2, 3), (None, 3, 4)])
@torch.no_grad()
def test_attention_equals_a_loop_over_windows_padded_with_zeros(window: int | None, height: int, width: int) -> None:
    attention = shaken(Attention(8, num_heads=2, qkv_bias=True)).double()
    attend = WindowAttention(4, window).double()
    for table in (attend.rows, attend.columns):
        nn.init.normal_(table)
    tokens = torch.randn(2, height, width, 8, dtype=torch.float64)
    found = attend(attention, tokens)
    tables = attend.rows, attend.columns
    for image, result in zip(tokens, found, strict=True):
        if window is None or max(height, width) <= window:
            torch.testing.assert_close(result, attention_in_loops(attention, *tables, image))
            continue
        for top in range(0, height, window):
            for left in range(0, width, window):
                inside = torch.zeros(window, window, 8, dtype=torch.float64)
                seen = image[top : top + window, left : left + window]
                inside[: len(seen), : seen.shape[1]] = seen
                expected = attention_in_loops(attention, *tables, inside)[: len(seen), : seen.shape[1]]
                torch.testing.assert_close(result[top : top + window, left : left + window], expected)


def test_distances_beyond_the_table_are_clamped() -> None:
    attend = WindowAttention(4, None)
    assert len(attend.rows) == len(attend.columns) == 2 * 84 - 1  # the longest edge of 1333 px, padded, in patches
    far = attend(Attention(8, num_heads=2), torch.randn(1, 1, 90, 8))
    assert far.isfinite().all()


@pytest.mark.parametrize(
    ("depth", "blocks"), [(12, {2, 5, 8, 11}), (24, {5, 11, 17, 23}), (32, {7, 15, 23, 31}), (6, {1, 2, 4, 5})]
)
def test_the_last_block_of_each_quarter_has_global_attention(depth: int, blocks: set[int]) -> None:
    assert global_blocks(depth) == blocks
    if depth == 12:
        attention = WindowedTransformer(build_backbone("vit_tiny_patch16_224")).attention
        assert [i for i, attend in enumerate(attention) if attend.window is None] == sorted(blocks)
        assert {len(attend.rows) for attend in attention} == {2 * 14 - 1, 2 * 84 - 1}


def test_blocks_are_dropped_only_in_training_and_the_last_most_often() -> None:
    transformer = WindowedTransformer(build_backbone("test_vit"))
    rates = [block.drop_path1.drop_prob for block in transformer.backbone.net.model.blocks]
    assert rates == pytest.approx([0.0, 0.02, 0.04, 0.06, 0.08, 0.1])
    torch.manual_seed(0)
    assert len({transformer(IMAGES).sum().item() for _ in range(8)}) > 1
    transformer.eval()
    assert torch.equal(transformer(IMAGES), transformer(IMAGES))


@torch.no_grad()
def test_the_pyramid_has_detectron2s_layers() -> None:
    pyramid = shaken(SimpleFeaturePyramid(build_backbone("test_vit"), 16))
    levels = pyramid(IMAGES)
    sides = {"2": (16, 24), "3": (8, 12), "4": (4, 6), "5": (2, 3), "pool": (1, 2)}
    assert {name: level.shape for name, level in levels.items()} == {n: (2, 16, *side) for n, side in sides.items()}
    assert torch.equal(levels["pool"], levels["5"][..., ::2, ::2])

    def norm(x: Tensor, layer: Any) -> Tensor:
        mean, variance = x.mean(1, keepdim=True), x.var(1, unbiased=False, keepdim=True)
        return (x - mean) / (variance + 1e-6).sqrt() * layer.weight[:, None, None] + layer.bias[:, None, None]

    features = pyramid.transformer(IMAGES)
    for name, start in (("2", 4), ("3", 1), ("4", 0), ("5", 1)):
        layers, x = pyramid.levels[name], features
        if name == "5":
            x = F.max_pool2d(x, 2)
        if name in "23":
            x = F.conv_transpose2d(x, layers[0].weight, layers[0].bias, stride=2)
        if name == "2":
            x = F.gelu(norm(x, layers[1]))
            x = F.conv_transpose2d(x, layers[3].weight, layers[3].bias, stride=2)
        x = norm(F.conv2d(x, layers[start].weight), layers[start + 1])
        x = norm(F.conv2d(x, layers[start + 2].weight, padding=1), layers[start + 3])
        torch.testing.assert_close(levels[name], x, rtol=1e-4, atol=1e-5)


def test_heads_are_deeper_and_have_layer_norms() -> None:
    model: Any = DETECTORS["vitdet"](build_backbone("test_vit"), 1, anchor_sizes=(32,) * 5, detections_per_image=100)

    def convolutions(module: nn.Module) -> list[tuple[int, ...]]:
        return [tuple(m.weight.shape) for m in module.modules() if isinstance(m, nn.Conv2d)]

    assert convolutions(model.rpn.head.conv) == [(256, 256, 3, 3)] * 2
    assert convolutions(model.heads.box_head) == convolutions(model.heads.mask_head) == [(256, 256, 3, 3)] * 4
    assert [m.weight.shape for m in model.heads.box_head if isinstance(m, nn.Linear)] == [(1024, 256 * 7 * 7)]
    for head in (model.heads.box_head, model.heads.mask_head):
        norms = [m for m in head.modules() if isinstance(m, nn.LayerNorm)]
        assert len(norms) == 4 and {m.eps for m in norms} == {1e-6}
    assert not any(isinstance(m, _BatchNorm) for m in model.modules())


def detectron2s_rate(name: str, depth: int) -> float:
    """ViTDet's rule, by parameter names."""
    layer = depth + 1
    if any(part in name for part in (".patch_embed.", ".pos_embed")):
        layer = 0
    elif ".blocks." in name or ".attention." in name:
        layer = int(name.partition(".blocks." if ".blocks." in name else ".attention.")[2].split(".")[0]) + 1
    return 0.7 ** (depth + 1 - layer)


def test_learning_rates_decay_layer_by_layer_and_norms_biases_and_positions_have_no_weight_decay() -> None:
    model = notes_of("vitdet_small", "vit_tiny_patch16_224").build()
    solver = make_solver("1x", lr=1e-3, optimizer="adamw")
    task = DetectionTask(model, notes_of("vitdet_small", "vit_tiny_patch16_224"), solver)
    groups = task.updates().optimizer.param_groups
    names = {id(p): name for name, p in model.named_parameters()}
    found = {names[id(p)]: (g["initial_lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert {g["betas"] for g in groups} == {(0.9, 0.999)} and sum(len(g["params"]) for g in groups) == len(found)
    assert names.keys() - {id(p) for g in groups for p in g["params"]} == {id(model.backbone.net.model.cls_token)}
    for name, (lr, decay) in found.items():
        assert lr == pytest.approx(1e-3 * detectron2s_rate(name, 12)), name
        free = name.endswith((".pos_embed", ".rows", ".columns", ".bias")) or model.get_parameter(name).ndim == 1
        assert decay == (0.0 if free else 0.1), name
    assert sorted({lr for lr, _ in found.values()}) == pytest.approx([1e-3 * 0.7**i for i in range(13, -1, -1)])
    assert groups[0]["initial_lr"] == 1e-3  # the rate that is logged
    assert all(g["lr"] == pytest.approx(1e-3 * g["initial_lr"]) for g in groups)  # the first step of the warm-up


def test_the_learning_rate_is_proportional_to_the_batch_size() -> None:
    rates = [make_solver("1x", batch_size=size, base_lr=BASE_LR["vitdet"]).lr for size in (16, 8, 64)]
    assert rates == pytest.approx([1e-4, 5e-5, 4e-4])


def test_without_batch_norms_no_statistics_are_re_estimated() -> None:
    class Batches:
        def __len__(self) -> int:
            return 3

        def __iter__(self) -> Iterator[Any]:
            raise AssertionError("batches are read for nothing")

    notes = notes_of("vitdet_small", "test_vit")
    settle_batch_norm(notes.build(), notes, Batches(), choose_hardware("cpu", "32"), 0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "backbone", ["resnet18", "vit_small_patch32_224", "vit_small_patch8_224", "eva02_tiny_patch14_224"]
)
def test_a_backbone_that_is_not_a_plain_transformer_of_16_px_is_refused(backbone: str) -> None:
    eva = backbone.startswith("eva")
    message = "only a norm of its pooled features" if eva else f"patches of 14 or 16 px, which {backbone} is not"
    with pytest.raises(UserError, match=message):
        notes_of("vitdet", backbone).build()


PATCH_14 = "test_vit(img_size=56, patch_size=14, depth=2, init_values=1e-05)"


@torch.no_grad()
def test_patches_of_14_px_give_levels_at_their_strides() -> None:
    """Images are padded to multiples of 28 px; positions and boxes stay where they are in the image."""
    backbone = shaken(build_backbone(PATCH_14))
    pyramid = SimpleFeaturePyramid(backbone, 8).eval()
    levels = pyramid(IMAGES)  # 64 x 96 px, padded to 84 x 112
    assert [tuple(level.shape[2:]) for level in levels.values()] == [(24, 32), (12, 16), (6, 8), (3, 4), (2, 2)]
    whole = WindowedTransformer(backbone).eval()(F.pad(IMAGES, (0, 16, 0, 20)))
    torch.testing.assert_close(levels["4"], pyramid.levels["4"](whole))

    detector: Any = notes_of("vitdet_small", PATCH_14).build()
    strides = detector.rpn.anchor_generator.strides
    assert strides == (3.5, 7.0, 14.0, 28.0, 56.0)
    pool = detector.heads.box_roi_pool
    maps = {}  # each position has the coordinates of its center
    for level, stride in zip((2, 3, 4, 5), strides, strict=False):
        centers = (torch.arange(400 // stride) + 0.5) * stride
        maps[str(level)] = torch.stack(torch.meshgrid(centers, centers, indexing="ij"))[None]
    boxes = torch.tensor([[30.0, 60.0, 80.0, 100.0], [100.0, 50.0, 300.0, 290.0], [10.0, 20.0, 390.0, 380.0]])
    pooled = pool(maps, [boxes], [(400, 400)]).mean((2, 3))
    wanted = torch.stack((boxes[:, 1] + boxes[:, 3], boxes[:, 0] + boxes[:, 2]), dim=1) / 2
    torch.testing.assert_close(pooled, wanted, rtol=0, atol=0.5)


def test_rotary_embeddings_are_refused() -> None:
    with pytest.raises(UserError, match="vitdet needs a plain vision transformer"):
        WindowedTransformer(build_backbone("vit_small_patch16_dinov3"))
