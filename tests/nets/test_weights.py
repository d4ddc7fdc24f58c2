"""Weights out and in: equal outputs elsewhere, nothing run, one line for each mistake."""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from timm.models.resnet import Bottleneck
from torch import Tensor, nn

from densepath.core.errors import UserError
from densepath.nets.backbones import Backbone, build_backbone
from densepath.nets.backbones.choose import choose_backbone
from densepath.nets.weights import load_weights, read_weights, save_backbone
from densepath.nets.weights.layouts import LAYOUTS, to_detectron2
from densepath.nets.weights.volume_layouts import VOLUME_LAYOUTS


def _trained(name: str = "resnet18") -> Backbone:
    """A backbone in eval mode whose every tensor, batch statistics included, has moved from its start."""
    backbone = build_backbone(name)
    with torch.no_grad():
        for module in backbone.modules():
            if isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
                module.weight.uniform_(0.5, 1.0)
                module.bias.normal_(0, 0.1)
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
                module.num_batches_tracked.fill_(7)
    return backbone.eval()


@pytest.fixture(scope="module")
def resnet18() -> Backbone:
    torch.manual_seed(0)
    return _trained()


def _same(one: nn.Module, other: nn.Module) -> bool:
    state, other_state = one.state_dict(), other.state_dict()
    return all(torch.equal(state[key], other_state[key]) for key in state if "num_batches_tracked" not in key)


IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "convnext_atto", "mobilenetv3_small_050"])
@torch.no_grad()
def test_timm_loads_the_file_by_its_own_call_and_gives_equal_maps(name: str, tmp_path: Path) -> None:
    backbone = _trained(name)
    path = tmp_path / "backbone.safetensors"
    save_backbone(path, backbone)
    network = timm.create_model(name, num_classes=0, checkpoint_path=str(path)).eval()
    _, maps = network.forward_intermediates(IMAGES)
    torch.testing.assert_close(maps[-1], backbone(IMAGES)[5])
    if name.startswith("resnet"):
        plain = timm.create_model(name, num_classes=0, global_pool="", checkpoint_path=str(path)).eval()
        torch.testing.assert_close(plain(IMAGES), backbone(IMAGES)[5])


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50"])
@torch.no_grad()
def test_torchvision_loads_the_file_without_classifier_and_gives_equal_maps(name: str, tmp_path: Path) -> None:
    backbone = _trained(name)
    path = tmp_path / "backbone.safetensors"
    save_backbone(path, backbone, "torchvision")
    network = torchvision.models.get_model(name).eval()
    keys = network.load_state_dict(load_file(path), strict=False)
    assert keys.missing_keys == ["fc.weight", "fc.bias"]
    assert keys.unexpected_keys == []
    network.avgpool, network.fc = nn.Identity(), nn.Identity()
    torch.testing.assert_close(network(IMAGES), backbone(IMAGES)[5].flatten(1))


def test_the_file_says_what_it_is(resnet18: Backbone, tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "backbone.safetensors"
    save_backbone(path, resnet18, metadata={"method": "concl", "steps": "312", "backbone": "not this"})
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    assert metadata["method"] == "concl"
    assert metadata["steps"] == "312"
    assert metadata["backbone"] == "resnet18"
    assert metadata["layout"] == "timm"
    assert metadata["format_version"] == "1"
    assert metadata["densepath_version"] == version("densepath")
    assert metadata["untrained"] == ""
    assert json.loads(metadata["mean"]) == [0.485, 0.456, 0.406]
    assert json.loads(metadata["std"]) == [0.229, 0.224, 0.225]
    assert read_weights(path).metadata == metadata


def test_the_callers_normalization_and_the_untrained_layers_are_recorded(tmp_path: Path) -> None:
    path = tmp_path / "b.safetensors"
    save_backbone(path, build_backbone("convnext_atto"), metadata={"mean": "[0.5, 0.5, 0.5]"})
    metadata = read_weights(path).metadata
    assert metadata["mean"] == "[0.5, 0.5, 0.5]"
    assert metadata["untrained"] == "head.norm.weight, head.norm.bias"


def test_detectron2_file_for_its_own_checkpointer(resnet18: Backbone, tmp_path: Path) -> None:
    """DetectionCheckpointer takes .pth files whose "model" holds the tensors, and matches names on request."""
    path = tmp_path / "backbone.pth"
    save_backbone(path, resnet18, "detectron2")
    content = torch.load(path, weights_only=True)
    assert content["matching_heuristics"] is True
    expected = to_detectron2(resnet18.net.state_dict())
    assert content["model"].keys() == expected.keys()
    assert all(torch.equal(content["model"][key], value) for key, value in expected.items())
    assert read_weights(path).metadata["backbone"] == "resnet18"


@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout not in VOLUME_LAYOUTS])
def test_every_layout_comes_back_as_it_was(layout: str, resnet18: Backbone, tmp_path: Path) -> None:
    path = tmp_path / "b.safetensors"
    save_backbone(path, resnet18, layout)
    fresh = build_backbone()
    line = load_weights(fresh, path)
    assert line == f"resnet18 with 100 of 100 tensors from {path}"
    assert _same(fresh, resnet18)
    counted = 0 if layout == "detectron2" else 7
    assert int(fresh.net.bn1.num_batches_tracked) == counted


@pytest.mark.parametrize("name", ["convnext_atto", "mobilenetv3_small_050", "repvgg_a0"])
def test_other_families_come_back_too(name: str, tmp_path: Path) -> None:
    backbone, fresh = _trained(name), build_backbone(name)
    save_backbone(tmp_path / "b.safetensors", backbone)
    load_weights(fresh, tmp_path / "b.safetensors")
    assert _same(fresh, backbone)


def test_a_failed_write_leaves_the_old_file(
    resnet18: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "b.safetensors"
    save_backbone(path, resnet18)
    before = path.read_bytes()

    def half(state: dict[str, Tensor], file: Path, metadata: dict[str, str]) -> None:
        Path(file).write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr("densepath.nets.weights.saving.save_file", half)
    with pytest.raises(OSError, match="no space left"):
        save_backbone(path, resnet18)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("name", "layout"), [("b.pth", "timm"), ("b.bin", "detectron2"), ("b", "torchvision")])
def test_a_suffix_that_the_library_would_not_read_is_refused(
    name: str, layout: str, resnet18: Backbone, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"must end in \.safetensors"):
        save_backbone(tmp_path / name, resnet18, layout)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("prefix", ["", "backbone.", "module.", "module.encoder_q.", "net.", "student.backbone.net."])
def test_torch_files_load_whatever_stands_before_their_keys(prefix: str, resnet18: Backbone, tmp_path: Path) -> None:
    state = {prefix + key: value for key, value in resnet18.net.state_dict().items()}
    state[f"{prefix}fc.weight"] = torch.zeros(3, 512)
    path = tmp_path / "foreign.pth"
    torch.save({"epoch": 3, "state_dict": state}, path)
    fresh = build_backbone()
    under = f" under {prefix}" if prefix else ""
    assert load_weights(fresh, path) == (
        f"resnet18 with 100 of 100 tensors from {path}{under}; not used: {prefix}fc.weight"
    )
    assert _same(fresh, resnet18)


def test_a_run_folder_gives_its_export_and_without_one_its_checkpoint(resnet18: Backbone, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    query = {f"method.backbone.{key}": value for key, value in resnet18.state_dict().items()}
    slow = {f"method.key_backbone.{key}": torch.zeros_like(value) for key, value in resnet18.state_dict().items()}
    torch.save({"state_dict": {**slow, **query}, "global_step": 4}, tmp_path / "checkpoints" / "last.ckpt")
    fresh = build_backbone()
    load_weights(fresh, tmp_path)
    assert _same(fresh, resnet18)
    exported = build_backbone()
    save_backbone(tmp_path / "exported" / "backbone.safetensors", exported)
    load_weights(fresh, str(tmp_path))
    assert _same(fresh, exported)


def test_random_keeps_the_initialization() -> None:
    backbone = build_backbone()
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    assert load_weights(backbone, "random") == "resnet18 with random weights"
    assert all(torch.equal(before[key], value) for key, value in backbone.state_dict().items())


class _Bomb:
    """Unpickling this writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("writer", ["torch", "torch_legacy", "pickle"])
@pytest.mark.parametrize("suffix", [".pth", ".ckpt", ".pkl", ".safetensors"])
def test_a_pickle_dressed_as_weights_is_never_run(writer: str, suffix: str, tmp_path: Path) -> None:
    mark, path = tmp_path / "the bomb went off", tmp_path / f"weights{suffix}"
    content = {"state_dict": {"conv1.weight": torch.zeros(1)}, "bomb": _Bomb(mark)}
    if writer == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=writer == "torch")
    with pytest.raises(UserError, match=rf"weights\{suffix}") as raised:
        load_weights(build_backbone(), path)
    assert "\n" not in str(raised.value)
    assert not mark.exists()
    pickle.loads(pickle.dumps(_Bomb(mark)))
    assert mark.exists()


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99])
def test_a_truncated_file_names_itself(suffix: str, share: float, resnet18: Backbone, tmp_path: Path) -> None:
    path = tmp_path / f"b{suffix}"
    save_backbone(path, resnet18, "detectron2")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(UserError, match=rf"b\{suffix}") as raised:
        load_weights(build_backbone(), path)
    assert "\n" not in str(raised.value)


def test_a_compressed_torch_file_takes_no_memory(
    tmp_path: Path, bounded_memory: Callable[..., AbstractContextManager[None]]
) -> None:
    plain, swells = tmp_path / "plain.pth", tmp_path / "swells.pth"
    torch.save({"layer.weight": torch.zeros(2**25)}, plain)  # 128 MiB
    with zipfile.ZipFile(plain) as old, zipfile.ZipFile(swells, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with bounded_memory(40), pytest.raises(UserError, match=r"swells\.pth is compressed"):
        read_weights(swells)


def test_an_old_torch_file_that_declares_more_than_it_has_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "old.pth"
    torch.save({"w": torch.zeros(1000)}, path, _use_new_zipfile_serialization=False)
    read_weights(path)
    count = b"M" + (1000).to_bytes(2, "little")  # as pickle writes it
    path.write_bytes(path.read_bytes().replace(count, b"\x8a\x08" + (2**50).to_bytes(8, "little")))
    with pytest.raises(UserError, match=r"old\.pth is damaged or not a torch file"):
        read_weights(path)


def test_a_torchscript_program_is_named_as_such(tmp_path: Path) -> None:
    torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)).save(tmp_path / "program.pt")
    with pytest.raises(UserError, match="TorchScript program"):
        read_weights(tmp_path / "program.pt")


def _untouched_after_error(source: Path | str, message: str, name: str = "resnet18") -> None:
    backbone = build_backbone(name)
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    with pytest.raises(UserError, match=message) as raised:
        load_weights(backbone, source)
    assert "\n" not in str(raised.value)
    assert all(torch.equal(before[key], value) for key, value in backbone.state_dict().items())


def test_weights_of_another_width_name_the_first_keys_and_the_backbone(tmp_path: Path) -> None:
    path = tmp_path / "b.safetensors"
    save_backbone(path, build_backbone("resnet50"))
    _untouched_after_error(
        path,
        r"does not fit resnet18: the shapes of layer1\.0\.conv1\.weight, layer1\.1\.conv1\.weight, "
        r"layer2\.0\.conv1\.weight and \d+ more differ; name the backbone that they belong to \(--backbone resnet50\)",
    )


def test_weights_of_a_deeper_network_are_not_silently_cut(tmp_path: Path) -> None:
    path = tmp_path / "b.safetensors"
    save_backbone(path, build_backbone("resnet34"))
    _untouched_after_error(
        path, r"layers that the backbone lacks \(layer1\.2\..* and \d+ more\).* \(--backbone resnet34\)"
    )


def test_weights_of_another_family_name_the_first_missing_keys(tmp_path: Path) -> None:
    path = tmp_path / "b.pth"
    torch.save(timm.create_model("convnext_atto").state_dict(), path)
    _untouched_after_error(
        path,
        r"does not fit resnet18: it has 0 of the 100 tensors \(not conv1\.weight, bn1\.weight, bn1\.bias and 97 more; "
        r"instead stem\.\S+, .* more\); name the backbone",
    )


def test_the_line_names_the_few_tensors_that_are_missing(resnet18: Backbone, tmp_path: Path) -> None:
    state = {key: value.clone() for key, value in resnet18.net.state_dict().items() if "layer1.0.bn1" not in key}
    path = tmp_path / "b.safetensors"
    save_file(state, path)
    line = load_weights(build_backbone(), path)
    assert line.endswith(
        "96 of 100 tensors from "
        + str(path)
        + "; not in the file: layer1.0.bn1.weight, layer1.0.bn1.bias, layer1.0.bn1.running_mean and 1 more"
    )


def test_nine_tenths_of_the_tensors_must_be_there(resnet18: Backbone, tmp_path: Path) -> None:
    keys = [key for key in resnet18.net.state_dict() if "num_batches" not in key]
    keys.sort(key=lambda key: key.endswith("running_mean"))  # at the end: no block loses all of its tensors
    path = tmp_path / "b.safetensors"
    save_file({key: resnet18.net.state_dict()[key] for key in keys[:90]}, path)
    assert "90 of 100" in load_weights(build_backbone(), path)
    save_file({key: resnet18.net.state_dict()[key] for key in keys[:89]}, path)
    _untouched_after_error(path, "has 89 of the 100 tensors")


@pytest.mark.parametrize(
    ("name", "part"),
    [("resnet50", "conv1."), ("resnet50", "layer3.4."), ("convnext_atto", "stem_0."), ("efficientnet_b0", "blocks.6.")],
)
def test_a_stem_or_a_block_that_is_missing_as_a_whole_is_named(name: str, part: str, tmp_path: Path) -> None:
    """Though far more than nine tenths of the tensors are there."""
    state = build_backbone(name).net.state_dict()
    missing = [key for key in state if key.startswith(part) and "num_batches" not in key]
    path = tmp_path / "b.safetensors"
    save_file({key: value for key, value in state.items() if key not in missing} | {"mine": torch.zeros(1)}, path)
    _untouched_after_error(path, rf"tensors \(not {re.escape(missing[0])}.*; instead mine\); name the backbone", name)


def test_sources_that_are_nothing_say_what_is_accepted(tmp_path: Path) -> None:
    _untouched_after_error(
        "hf-hub:somebody/model", r"hf-hub:somebody/model could not be fetched \(.*\); check the name"
    )
    for source in ("resnet19", tmp_path / "missing.safetensors"):
        _untouched_after_error(source, r"there are no weights .*; give a \.safetensors, .* run folder, .* or random")
    _untouched_after_error(tmp_path, "holds neither weights in exported/ nor checkpoints/last")
    empty = tmp_path / "list.pt"
    torch.save([1, 2], empty)
    _untouched_after_error(empty, r"list\.pt holds no tensors")


def test_a_later_format_asks_for_a_later_densepath(tmp_path: Path) -> None:
    path = tmp_path / "b.safetensors"
    save_file({"conv1.weight": torch.zeros(1)}, path, {"format_version": "2", "densepath_version": "9.0"})
    _untouched_after_error(path, r"written by densepath 9\.0; update densepath")


def test_timm_weights_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """The download is replaced by a network made here."""
    fetched = timm.create_model("resnet18", features_only=True)
    asked: list[tuple[str, dict[str, Any]]] = []
    backbone, other = build_backbone(), build_backbone("convnext_atto")
    monkeypatch.setattr(timm, "create_model", lambda name, **options: asked.append((name, options)) or fetched)
    line = load_weights(backbone, "resnet18.a1_in1k")
    assert asked == [("resnet18.a1_in1k", {"pretrained": True, "features_only": True, "in_chans": 3})]
    assert _same(backbone.net, fetched)
    assert line == "resnet18 with timm's resnet18.a1_in1k"
    fetched.pretrained_cfg["mean"] = (0.5, 0.5, 0.5)
    assert "; its normalization: mean (0.5, 0.5, 0.5)" in load_weights(backbone, "resnet18")
    with pytest.raises(UserError, match=r"resnet18 does not fit convnext_atto; .* \(--backbone resnet18\)"):
        load_weights(other, "resnet18")


def test_timm_weights_fit_as_those_of_a_file_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network with fewer maps has fewer layers; one of other channels is refused in one line."""
    fetched = timm.create_model("resnet18", features_only=True)
    short = choose_backbone(timm.create_model("resnet18", features_only=True, out_indices=(1, 2, 3)))
    monkeypatch.setattr(timm, "create_model", lambda name, **options: fetched)
    load_weights(short, "resnet18.a1_in1k")
    assert torch.equal(short.net.layer3[1].conv2.weight, fetched.layer3[1].conv2.weight)
    monkeypatch.undo()
    four = build_backbone("resnet18", 4)
    monkeypatch.setattr(timm, "create_model", lambda name, **options: fetched)
    with pytest.raises(UserError, match=r"conv1\.weight differ; their images have 3 channels, not 4; use others$"):
        load_weights(four, "resnet18.a1_in1k")


def test_weights_of_another_network_of_the_same_name_do_not_advise_that_name(
    resnet18: Backbone, tmp_path: Path
) -> None:
    save_backbone(tmp_path / "w.safetensors", resnet18)
    other = choose_backbone(timm.create_model("resnet18", features_only=True, base_width=32, block=Bottleneck))
    with pytest.raises(UserError, match="they are of another network with this name: pass it, in Python"):
        load_weights(other, tmp_path / "w.safetensors")


def test_timm_weights_without_network_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = build_backbone()

    def offline(name: str, **options: Any) -> nn.Module:
        raise ConnectionError("many\nlines")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(UserError, match=r"could not be fetched \(ConnectionError\); check the network") as raised:
        load_weights(backbone, "resnet18.a1_in1k")
    assert "\n" not in str(raised.value)


def test_the_moving_average_of_a_checkpoint_comes_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As in timm; the log names it once, and an empty one is passed over."""
    trained, averaged = ({"conv1.weight": torch.full((2, 3, 1, 1), value)} for value in (1.0, 2.0))
    for plain, ema in (("model", "model_ema"), ("state_dict", "state_dict_ema")):
        torch.save({plain: trained, ema: averaged}, path := tmp_path / f"{ema}.pth")
        for _ in range(2):
            assert torch.equal(read_weights(path)[0]["conv1.weight"], averaged["conv1.weight"])
        assert capsys.readouterr().err.count(f"moving average ({ema}) is used, not {plain}") == 1
        for empty in ({}, {"decay": 0.99, "updates": 3}):
            torch.save({plain: trained, ema: empty}, path := tmp_path / f"{plain}.pth")
            assert torch.equal(read_weights(path)[0]["conv1.weight"], trained["conv1.weight"])
            assert not capsys.readouterr().err


def test_a_holder_without_tensors_does_not_hide_the_others(tmp_path: Path) -> None:
    torch.save({"model": {"name": "resnet18"}, "net": {"conv1.weight": torch.ones(1)}}, tmp_path / "w.pth")
    assert read_weights(tmp_path / "w.pth").state_dict.keys() == {"net.conv1.weight"}


@pytest.mark.parametrize("name", ["w.bin", "w.SAFETENSORS", "w"])
def test_safetensors_are_known_by_their_content(name: str, tmp_path: Path) -> None:
    save_file({"conv1.weight": torch.ones(1)}, tmp_path / name, {"note": "kept"})
    assert read_weights(tmp_path / name).metadata == {"note": "kept"}
