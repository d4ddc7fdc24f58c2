"""Names of tensors in the three layouts."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors import SafetensorError
from torch import nn

from densepath.core.errors import UserError
from densepath.nets.backbones import Backbone, TimmBackbone, build_backbone
from densepath.nets.backbones.choose import choose_backbone
from densepath.nets.norms import to_group_norm
from densepath.nets.weights import load_weights, save_backbone
from densepath.nets.weights.layouts import arrange, match_names, timm_state, to_detectron2
from densepath.nets.weights.pretrained import backbone_of_weights

# Written from detectron2's ResNet, not from the mapping.
NORM = ("weight", "bias", "running_mean", "running_var")


def _detectron2_names(blocks: tuple[int, ...], convs: int, shortcuts: tuple[int, ...]) -> set[str]:
    names = {"stem.conv1.weight", *(f"stem.conv1.norm.{leaf}" for leaf in NORM)}
    for stage, count in enumerate(blocks, start=2):
        for block in range(count):
            layers = [f"conv{i}" for i in range(1, convs + 1)]
            if block == 0 and stage in shortcuts:
                layers.append("shortcut")
            for layer in layers:
                names.add(f"res{stage}.{block}.{layer}.weight")
                names |= {f"res{stage}.{block}.{layer}.norm.{leaf}" for leaf in NORM}
    return names


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet18", _detectron2_names((2, 2, 2, 2), 2, (3, 4, 5))),
        ("resnet34", _detectron2_names((3, 4, 6, 3), 2, (3, 4, 5))),
        ("resnet50", _detectron2_names((3, 4, 6, 3), 3, (2, 3, 4, 5))),
    ],
)
def test_detectron2_names(name: str, expected: set[str]) -> None:
    assert set(to_detectron2(timm_state(name))) == expected


def test_detectron2_places() -> None:
    state = timm_state("resnet50")
    renamed = to_detectron2(state)
    pairs = {
        "conv1.weight": "stem.conv1.weight",
        "bn1.running_var": "stem.conv1.norm.running_var",
        "layer1.0.conv1.weight": "res2.0.conv1.weight",
        "layer1.0.bn3.weight": "res2.0.conv3.norm.weight",
        "layer1.0.downsample.0.weight": "res2.0.shortcut.weight",
        "layer2.0.downsample.1.running_mean": "res3.0.shortcut.norm.running_mean",
        "layer3.5.bn2.bias": "res4.5.conv2.norm.bias",
        "layer4.2.conv3.weight": "res5.2.conv3.weight",
    }
    for timm_name, detectron2_name in pairs.items():
        assert renamed[detectron2_name] is state[timm_name]


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
@pytest.mark.parametrize("prefix", ["", "backbone.bottom_up."])
def test_detectron2_there_and_back_is_the_identity(name: str, prefix: str) -> None:
    state = {key: value for key, value in timm_state(name).items() if not key.endswith("num_batches_tracked")}
    inside = {prefix + key: value for key, value in to_detectron2(state).items()}
    match = match_names(inside | {"backbone.fpn_lateral2.weight": torch.zeros(1)}, timm_state(name))
    assert list(match.found) == list(state)
    assert all(match.found[key] is state[key] for key in state)
    assert (match.prefix, match.unused) == (prefix, ["backbone.fpn_lateral2.weight"])


@pytest.mark.parametrize("prefix", ["", "backbone.", "model.net."])
def test_a_sequence_of_a_resnets_children_is_recognized_by_their_numbers(prefix: str) -> None:
    network = torchvision.models.resnet50(num_classes=3)
    state = nn.Sequential(*list(network.children())[:-1]).state_dict(prefix=prefix)
    match = match_names(state | {f"{prefix}8.weight": torch.zeros(1)}, timm_state("resnet50"))
    assert match.found.keys() == timm_state("resnet50").keys()
    assert all(match.found[key].data_ptr() == network.state_dict()[key].data_ptr() for key in match.found)
    assert (match.prefix, match.others) == (prefix, ["8.weight"])


def test_frozen_norms_with_only_scale_and_bias_get_statistics_that_change_nothing() -> None:
    state = {key: value for key, value in to_detectron2(timm_state("resnet18")).items() if "running" not in key}
    names = timm_state("resnet18")
    found = match_names(state, names).found
    assert {key for key in names if "num_batches" not in key} == found.keys()
    norm = nn.BatchNorm2d(64).eval()
    norm.load_state_dict(
        {key.removeprefix("bn1."): found[key] for key in found if key.startswith("bn1.")}, strict=False
    )
    x = torch.randn(1, 64, 5, 5)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2)
        torch.testing.assert_close(norm(x), x * norm.weight[:, None, None] + norm.bias[:, None, None])
    assert "bn1.running_mean" not in match_names({key: state[key] for key in state if "norm" not in key}, names).found


def test_the_random_numbers_of_a_run_do_not_notice_an_export() -> None:
    backbone = build_backbone()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    arrange(backbone, "timm")
    assert torch.equal(torch.rand(3), expected)


def test_exported_tensors_are_copies_in_plain_memory_order() -> None:
    backbone = build_backbone().to(memory_format=torch.channels_last)
    state, _ = arrange(backbone, "timm")
    assert state["layer1.0.conv1.weight"].is_contiguous()
    before = state["conv1.weight"].clone()
    with torch.no_grad():
        backbone.net.conv1.weight.zero_()
    assert torch.equal(state["conv1.weight"], before)


@pytest.mark.parametrize(
    ("name", "wrapper"),
    [("convnext_atto", {}), ("convnext_atto", {"feature_cls": "getter"}), ("mobilenetv3_small_050", {})],
)
def test_timm_layout_holds_every_trained_tensor_once_and_names_the_others(name: str, wrapper: dict[str, str]) -> None:
    backbone = TimmBackbone(timm.create_model(name, features_only=True, **wrapper), name)
    state, untrained = arrange(backbone, "timm")
    assert set(state) == set(timm_state(name))
    assert set(untrained) < set(state)
    trained = [value for key, value in state.items() if key not in untrained]
    own = list(backbone.net.state_dict().values())
    assert untrained or (wrapper and len(own) == len(state))  # timm before 1.0.28 wraps the norm of the head, too
    assert len(trained) == len(own)
    assert all(torch.equal(value, mine) for value, mine in zip(trained, own, strict=True))


@pytest.mark.parametrize("name", ["regnetx_002", "convnext_atto", "resnet18"])
def test_a_network_unlike_its_name_is_written_with_all_its_tensors_and_no_others(name: str, tmp_path: Path) -> None:
    def changed(seed: int) -> Backbone:
        torch.manual_seed(seed)
        network = timm.create_model(name, features_only=True)
        if name == "convnext_atto":
            network.stages_0 = nn.Sequential(network.stages_0, nn.Conv2d(40, 40, 1))  # another name of its blocks
        return choose_backbone(to_group_norm(network))

    backbone, other = changed(0), changed(1)
    assert backbone.name == f"{name}*"
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(torch.rand_like(parameter))
    own = backbone.net.state_dict()
    state, untrained = arrange(backbone, "timm")
    assert len(state) == len(own) and not untrained
    save_backbone(tmp_path / "w.safetensors", backbone)
    load_weights(other, tmp_path / "w.safetensors", complete=True)
    loaded = other.net.state_dict()
    assert loaded.keys() == own.keys() and all(torch.equal(loaded[key], value) for key, value in own.items())


@pytest.mark.parametrize(("name", "layout"), [("resnet18_3d", "monai"), ("unet_3d", "models_genesis")])
def test_a_network_of_volumes_unlike_its_name_has_no_counterpart(name: str, layout: str, tmp_path: Path) -> None:
    backbone = choose_backbone(choose_backbone(to_group_norm(build_backbone(name, 1)), 1), 1)
    assert backbone.name == f"{name}*"  # one mark, though it was chosen twice
    with pytest.raises(UserError, match=rf"{name}\* has no counterpart in {layout}; export it in the default layout"):
        arrange(backbone, layout)
    save_backbone(tmp_path / "w.safetensors", backbone)
    with pytest.raises(UserError, match=rf"the weights of '{name}\*', a network that cannot be built from its name"):
        backbone_of_weights(tmp_path / "w.safetensors")


@pytest.mark.parametrize("layout", ["torchvision", "detectron2"])
@pytest.mark.parametrize("name", ["convnext_atto", "resnet18d", "seresnet18", "resnetaa34d", "efficientnet_b0"])
def test_networks_that_a_library_lacks_are_refused(layout: str, name: str) -> None:
    with pytest.raises(UserError, match=f"{layout} has no network that equals timm's {name}; use the layout timm"):
        arrange(build_backbone(name), layout)


def test_an_unknown_layout_is_refused() -> None:
    with pytest.raises(UserError, match="unknown layout 'caffe'; choose one of timm, torchvision, detectron2"):
        arrange(build_backbone(), "caffe")


def test_the_query_backbone_wins_over_its_slow_copy() -> None:
    names = timm_state("resnet18")
    checkpoint = {f"method.momentum.net.{key}": torch.zeros_like(value) for key, value in names.items()}
    checkpoint |= {f"method.backbone.net.{key}": value for key, value in names.items()}
    checkpoint["method.head.fc1.weight"] = torch.zeros(2, 2)
    found, prefix, others, unused, *_ = match_names(checkpoint, names)
    assert (prefix, others) == ("method.backbone.net.", [])
    assert "method.head.fc1.weight" in unused and len(unused) == len(names) + 1
    assert all(found[key] is names[key] for key in names)


@pytest.mark.parametrize(
    ("trained", "slow"),
    [
        ("module.encoder_q.", "module.encoder_k."),  # MoCo, PCL
        ("backbone.", "encoder_k.0."),  # OpenSelfSup, ConCL
        ("backbone.", "encoder_k.module.0."),  # mmselfsup
        ("online_net.0.", "target_net.module.0."),  # BYOL
        ("backbone.", "backbone_momentum."),  # lightly
        ("backbone.", "momentum_backbone."),  # solo-learn
        ("student.module.backbone.", "teacher.backbone."),  # DINO
        ("net.online_encoder.net.", "net.target_encoder.net."),
        ("encoder_q.", "encoder_m."),
        ("base_encoder.", "mom_encoder."),
        ("online.", "offline."),
        ("f_theta.", "f_xi."),
        ("module.", "averaged_module."),
        ("net.", "swa_net."),
    ],
)
@pytest.mark.parametrize("slow_first", [True, False])
def test_the_trained_encoder_wins_over_its_slow_copy(trained: str, slow: str, slow_first: bool) -> None:
    names = timm_state("resnet18")
    checkpoint = {f"{trained}{key}": value for key, value in names.items()} | {f"{trained}fc.0.weight": torch.zeros(1)}
    copy = {f"{slow}{key}": torch.zeros_like(value) for key, value in names.items()}
    match = match_names(copy | checkpoint if slow_first else checkpoint | copy, names)
    assert match.prefix == trained
    assert match.others == ["fc.0.weight"]
    assert match.unused == [f"{trained}fc.0.weight", *copy]
    assert all(match.found[key] is names[key] for key in names)


def test_of_two_encoders_alike_the_first_is_taken() -> None:
    names = timm_state("resnet18")
    checkpoint = {f"{prefix}{key}": value for prefix in ("unknown.", "another.") for key, value in names.items()}
    assert match_names(checkpoint, names).prefix == "unknown."


def test_a_longer_prefix_of_the_network_is_not_another_network() -> None:
    """timm's wrapper of a vision transformer has "model." before each name."""
    names = build_backbone("test_vit").net.state_dict()
    student = {f"student.{key}": value for key, value in names.items()}
    assert match_names(student, names)[-1] == []
    teacher = {f"teacher.{key}": value for key, value in names.items()}
    match = match_names(student | teacher, names)
    assert (match.prefix, match.rivals) == ("student.", ["teacher."])


def test_names_of_thousands_of_parts_take_no_time() -> None:
    match = match_names({f"{'a.' * 10**6}conv1.weight": torch.zeros(1)}, timm_state("resnet18"))
    assert match.found == {}


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("No space left on device (os error 28)", r"w\.safetensors cannot be written \(No space .*free disk space"),
        ("Read-only file system (os error 30)", r"w\.safetensors cannot be written \(Read-only .*; use another path$"),
    ],
)
def test_why_a_file_cannot_be_written(said: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As safetensors reports it, which raises no OSError."""

    def fail(*_: object, **__: object) -> None:
        raise SafetensorError(f"Error while serializing: I/O error: {said}")

    monkeypatch.setattr("densepath.nets.weights.saving.save_file", fail)
    with pytest.raises(UserError, match=message):
        save_backbone(tmp_path / "w.safetensors", build_backbone("test_resnet"))
    assert not [*tmp_path.iterdir()]


def test_the_network_that_is_proposed_is_another_one(tmp_path: Path) -> None:
    torch.save(build_backbone("resnet18").net.state_dict(), tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"does not fit resnet50: .*\(--backbone resnet18, say\)$"):
        load_weights(build_backbone("resnet50"), tmp_path / "w.pth")


def test_a_densenet_has_the_layout_of_torchvision() -> None:
    backbone = build_backbone("densenet121").eval()
    state, untrained = arrange(backbone, "torchvision")
    network = torchvision.models.densenet121().eval()
    assert network.load_state_dict(state, strict=False).missing_keys == ["classifier.weight", "classifier.bias"]
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        *_, deepest = backbone(images).values()
        assert not untrained and torch.equal(deepest, network.features(images).relu())
    with pytest.raises(UserError, match="takes images of 3 channels, and the weights 1; use the layout timm"):
        arrange(build_backbone("densenet121", 1), "torchvision")
