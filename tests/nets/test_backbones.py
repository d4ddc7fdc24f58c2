"""Backbones: their stages, where they stop, how they start, and who is refused."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from torch import Tensor, nn

from densepath.core.errors import UserError
from densepath.nets.backbones import TimmBackbone, build_backbone

WIDTHS = {
    "resnet18": (64, 64, 128, 256, 512),
    "resnet34": (64, 64, 128, 256, 512),
    "resnet50": (64, 256, 512, 1024, 2048),
}


def _images(size: int = 64) -> Tensor:
    return torch.randn(2, 3, size, size)


@pytest.mark.parametrize("name", WIDTHS)
def test_resnet_gives_five_stages_of_stride_two_to_the_stage(name: str) -> None:
    backbone = build_backbone(name)
    assert backbone.name == name
    assert backbone.stages == (1, 2, 3, 4, 5)
    assert backbone.channels == dict(zip(range(1, 6), WIDTHS[name], strict=True))
    maps = backbone(_images())
    assert {stage: tuple(f.shape) for stage, f in maps.items()} == {
        stage: (2, backbone.channels[stage], 64 // 2**stage, 64 // 2**stage) for stage in range(1, 6)
    }


def test_f1_of_a_resnet_is_the_stem_before_the_pool() -> None:
    backbone = build_backbone().eval()
    x = _images()
    net = backbone.net
    torch.testing.assert_close(backbone(x)[1], net.bn1(net.conv1(x)).relu())


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("resnet18", (1, 2, 3, 4, 5)),
        ("convnext_atto", (2, 3, 4, 5)),
        ("mobilenetv3_small_050", (1, 2, 3, 4, 5)),
        ("efficientnet_b0", (1, 2, 3, 4, 5)),
        ("vgg11", (1, 2, 3, 4, 5)),
    ],
)
def test_stages_equal_timm_and_do_not_depend_on_where_the_pass_stops(name: str, stages: tuple[int, ...]) -> None:
    backbone = build_backbone(name).eval()
    oracle = timm.create_model(name, features_only=True).eval()
    oracle.load_state_dict(
        {key.removeprefix("net."): value for key, value in backbone.state_dict().items()}, strict=True
    )
    x = _images()
    with torch.no_grad():
        maps, expected = backbone(x), oracle(x)[-len(stages) :]  # timm's VGG also gives stride 1
        assert tuple(maps) == backbone.stages == stages
        for stage, feature in zip(stages, expected, strict=True):
            assert torch.equal(maps[stage], feature)
            assert feature.shape[1] == backbone.channels[stage]
            assert feature.shape[-1] == 64 // 2**stage
        for last in stages:
            early = backbone(x, last=last)
            assert tuple(early) == tuple(stage for stage in stages if stage <= last)
            assert all(torch.equal(early[stage], maps[stage]) for stage in early)


def _layers_run(backbone: TimmBackbone, last: int) -> set[str]:
    """The names of the layers without children that a pass goes through."""
    run: set[str] = set()
    handles = [
        module.register_forward_hook(lambda *_, name=name: run.add(name))
        for name, module in backbone.net.named_modules()
        if not list(module.children())
    ]
    backbone(_images(), last=last)
    for handle in handles:
        handle.remove()
    return run


@pytest.mark.parametrize("last", [1, 2, 3, 4])
def test_nothing_after_the_last_stage_is_computed(last: int) -> None:
    backbone = build_backbone()
    everything, early = _layers_run(backbone, 5), _layers_run(backbone, last)
    later = tuple(f"layer{stage}" for stage in range(last, 5))  # layer1 is f2
    assert early == {name for name in everything if not name.startswith(later) and (last > 1 or name != "maxpool")}


@pytest.mark.parametrize(
    ("name", "wrapper", "deepest"), [("convnext_atto", "list", "stages_3."), ("resnet18", "getter", "model.layer4.")]
)
def test_other_networks_and_wrappers_of_timm_stop_early_too(name: str, wrapper: str, deepest: str) -> None:
    net = timm.create_model(name, features_only=True, feature_cls=wrapper)
    backbone = TimmBackbone(net, name).eval()
    x = _images()
    maps = backbone(x)
    assert all(torch.equal(mine, timms) for mine, timms in zip(maps.values(), net(x), strict=True))
    assert torch.equal(backbone(x, last=4)[4], maps[4])
    assert any(layer.startswith(deepest) for layer in _layers_run(backbone, 5))
    assert not any(layer.startswith(deepest) for layer in _layers_run(backbone, 4))


def test_early_stop_does_not_change_later_batch_statistics() -> None:
    backbone = build_backbone()
    backbone(_images(), last=4)
    counts = {key: int(v) for key, v in backbone.state_dict().items() if key.endswith("num_batches_tracked")}
    assert counts["net.layer3.1.bn2.num_batches_tracked"] == 1
    assert counts["net.layer4.1.bn2.num_batches_tracked"] == 0


def test_resnet_is_initialized_as_in_the_paper() -> None:
    backbone = build_backbone("resnet18")
    for name, module in backbone.named_modules():
        if isinstance(module, nn.Conv2d):
            fan_in = module.weight[0].numel()
            assert abs(module.weight.std().item() / (2 / fan_in) ** 0.5 - 1) < 0.05, name
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all(), name
            assert (module.bias == 0).all(), name


def test_building_starts_from_fresh_statistics_in_training_mode() -> None:
    backbone = build_backbone()
    assert all(module.training for module in backbone.modules())
    assert (backbone.net.bn1.running_mean == 0).all()
    assert backbone.net.bn1.num_batches_tracked == 0


def test_the_seed_decides_the_weights() -> None:
    torch.manual_seed(3)
    first = build_backbone().state_dict()
    torch.manual_seed(3)
    second = build_backbone().state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_a_tiny_input_trains() -> None:
    backbone = build_backbone()
    maps = backbone(_images(32))
    assert maps[5].shape == (2, 512, 1, 1)
    maps[5].square().mean().backward()
    assert backbone.net.conv1.weight.grad.abs().sum() > 0


def test_a_copy_is_independent_and_equal() -> None:
    backbone = build_backbone("mobilenetv3_small_050").eval()
    twin = copy.deepcopy(backbone)
    x = _images()
    assert torch.equal(backbone(x)[5], twin(x)[5])
    with torch.no_grad():
        twin.net.conv_stem.weight.zero_()
    assert not torch.equal(backbone(x)[5], twin(x)[5])


def test_a_stage_that_does_not_exist_names_those_that_do() -> None:
    backbone = build_backbone("convnext_atto")
    with pytest.raises(UserError, match=r"convnext_atto has no stage f1; choose one of f2, f3, f4, f5$"):
        backbone(_images(), last=1)
    with pytest.raises(UserError, match="no stage f7"):
        backbone.check_stage(7)
    backbone.check_stage(2)


def test_an_unknown_name_gets_suggestions() -> None:
    with pytest.raises(UserError, match=r"unknown backbone 'resnet81'; did you mean .*resnet18"):
        build_backbone("resnet81")
    with pytest.raises(UserError, match="unknown backbone"):
        build_backbone("hf-hub:somebody/something")


def test_a_name_of_weights_is_distinguished_from_a_name_of_a_network() -> None:
    with pytest.raises(UserError, match=r"use the backbone 'resnet18' and give 'resnet18.a1_in1k' as the weights"):
        build_backbone("resnet18.a1_in1k")


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "mixer_s32_224", "vit_relpos_small_patch16_224"])
def test_networks_without_maps_of_each_stride_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"{name} does not return feature maps") as raised:
        build_backbone(name)
    assert "\n" not in str(raised.value)
